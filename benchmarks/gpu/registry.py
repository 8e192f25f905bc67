"""All stages, part by part. The most valuable stages of a part come first, since its time may run out.

Most stages call one function, `compare`, with different settings: name in the result → overrides of ResNet-50's recipe.
"""

from collections.abc import Callable, Mapping
from functools import partial

from penstock.benchmarks.gpu import kernels, runs
from penstock.benchmarks.gpu.compare import bare, compare, pixels
from penstock.benchmarks.gpu.example import dali_example
from penstock.benchmarks.gpu.run import PART_LIMIT_S
from penstock.benchmarks.gpu.stage import COMPILED, EAGER, Job, Stage
from penstock.benchmarks.programs import Kind
from penstock.pipeline.build import threads_per_rank

CORES = threads_per_rank(0, 1)
LOADER = ("nvidia.dali", "simplejpeg")  # needed to make and read JPEGs as heavy as ImageNet's
Variants = Mapping[str, tuple[str, ...]]


def timed(kind: Kind, variants: Variants) -> Callable[[Job], None]:
    return partial(compare, kind=kind, variants=variants)


def of_each(key: str, *values: object) -> Variants:
    """Return a variant for each value of `section.key`."""
    return {f"{key.partition('.')[2]} {value}": (f"{key}={value}",) for value in values}


SYNTHETIC: Variants = {"DALI's batches": (), "synthetic batches": ("data.loader=synthetic",)}
LOADS = of_each("data.hw_decoder_load", 0.65, 0, 0.12, 0.3, 0.5, 1)
LOADER_THREADS = of_each("data.threads", *(1 << power for power in range(8) if 1 << power <= 2 * CORES))
TRAINING_THREADS = of_each("data.threads", *sorted({max(1, CORES // share) for share in (1, 2, 4, 8)}))
EAGERLY = {precision: (f"train.precision={precision}", *EAGER) for precision in ("bf16", "fp16")}
FUSED = {precision: (f"train.precision={precision}", *COMPILED) for precision in ("bf16", "fp16")}
GRAPHS, AUTOTUNE = (of_each("model.compile_mode", mode) for mode in ("reduce-overhead", "max-autotune"))
PLAIN = "data.fancy_upsampling=false"
WHOLE: Variants = {"whole": (), "whole, chroma repeated": (PLAIN,), "off": ("data.gpu_decode=off",)}
REGION: Variants = {"whole": (), "region": ("data.gpu_decode=region",),
                    "region, chroma repeated": ("data.gpu_decode=region", PLAIN)}  # fmt: skip
RESUMED = "killed or stopped, then resumed: the planned samples and bit-identical weights"

STAGES = [
    Stage("device", "check", 60, kernels.device, "copy: 3.0 TB/s on an H100, 4.3 on an H200; bf16 matmul: 790 TFLOP/s"),
    Stage("run", "check", 170, partial(runs.resumed, loader="synthetic"), RESUMED),
    Stage("tests", "check", 450, runs.tests, "all of tests/gpu pass", ("gpu", "nvidia.dali", "pytest")),
    Stage("recipes", "check", 160, runs.recipes, "every recipe trains, validates and reports"),

    Stage("eager", "compute", 110, timed("compute", EAGERLY), "3,500 images/s on an H100, 5,000 on an H200"),
    Stage("compiled", "compute", 180, timed("compute", FUSED), "4,300 images/s on an H100, 6,150 on an H200"),
    Stage("profile", "compute", 100, kernels.profile_step,
          "ms by kernel class; at 3.0 TB/s the bytes allow 6,290 images/s eager, 8,380 fused"),
    Stage("bare", "compute", 70, bare, "at least 0.97 times a bare loop"),
    Stage("graphs", "compute", 100, timed("compute", GRAPHS), "as fast as compiled, or faster", ("gpu",)),
    Stage("max-autotune", "compute", 240, timed("compute", AUTOTUNE), "as fast as graphs, or faster", ("gpu",)),

    Stage("hw-load", "decode", 150, timed("loader", LOADS), "8,000 images/s on 16 cores; goal: 19,000", LOADER),
    Stage("threads", "decode", 150, timed("loader", LOADER_THREADS), "the cores that 8,000 images/s need", LOADER),
    Stage("region", "decode", 90, timed("loader", REGION), "faster, or crashes (nvImageCodec issue 55)", LOADER),
    Stage("whole", "decode", 90, timed("loader", WHOLE), "gpu_decode=off: 380 images/s per core", LOADER),
    Stage("prefetch", "decode", 90, timed("loader", of_each("data.prefetch", 1, 2, 4, 8)), "2 is enough", LOADER),
    Stage("pixels", "decode", 90, pixels, "1,000,000 images/s at 32 px, on the GPU", ("nvidia.dali", "cifar")),

    Stage("end-to-end", "train", 180, timed("train", SYNTHETIC),
          "4,300 images/s on an H100; at least 0.97 times synthetic batches; waiting below 1%", LOADER),
    Stage("explain", "train", 180, runs.explained, "compute is the bottleneck; the model is within 10%", LOADER),
    Stage("cifar10", "train", 400, partial(runs.cifar, recipe="cifar10-rn18"), "top-1 0.95 in less than 10 minutes",
          ("nvidia.dali", "cifar")),
    Stage("cifar10-cpu", "train", 200, partial(runs.cifar, recipe="cifar10-cpu"), "top-1 0.90; seconds and images/s",
          ("nvidia.dali", "cifar")),
    Stage("cifar10-muon", "train", 200, partial(runs.cifar, recipe="cifar10-muon"),
          "top-1 0.90, as on 2 CPU cores; seconds and images/s", ("nvidia.dali", "cifar")),
    Stage("accumulated", "train", 150, runs.accumulated, "8 GPUs' batch on one: speed and memory as with its own"),
    Stage("resume", "train", 170, partial(runs.resumed, loader="dali"), RESUMED, ("nvidia.dali",)),
    Stage("dali-example", "train", 120, dali_example, "1.3 times the example's speed; it may crash (issue 55)", LOADER),
    Stage("end-to-end-threads", "train", 180, timed("train", TRAINING_THREADS), "fewer threads are faster", LOADER),
]  # fmt: skip


def chosen(part: str, only: str) -> list[Stage]:
    """Return the stages of a part, or those that --only names. Raises ValueError for an unknown name."""
    stages = {stage.name: stage for stage in STAGES if part in ("all", stage.part)}
    names = [name.strip() for name in only.split(",") if name.strip()] or list(stages)
    for name in names:
        if name not in stages:
            raise ValueError(f"--only {name}: no such stage. {part} has {', '.join(stages)}.")
    return [stage for name, stage in stages.items() if name in names]


def listed(stages: list[Stage]) -> str:
    lines = [f"{'part and stage':<25}  {'limit':>6}  expected result"]
    lines += [f"{f'{one.part} {one.name}':<25}  {one.limit_s:>4.0f} s  {one.expected}" for one in stages]
    return "\n".join(
        [*lines, f"A part takes at most {PART_LIMIT_S:.0f} s. Stages without enough time left do not run."]
    )
