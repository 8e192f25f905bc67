"""The stages `device` (the GPU's copy and matmul speed) and `profile` (a training step's milliseconds by kernel class).

`profile` also shows the bounds that a step's bytes and FLOP set at the device's speed. They were counted layer by layer
for a ResNet-50 step at 224 px (docs/gpu.md has the arithmetic). A kernel's class comes from its own name, and from the
operator that launched it if the profiler links the two.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from penstock.benchmarks.gpu.compare import build
from penstock.benchmarks.gpu.stage import COMPILED, EAGER, Job

STEP_BYTES = {"eager": 477e6, "fused": 358e6, "ideal": 195e6}  # an image; see docs/gpu.md
STEP_FLOP = 24.3e9  # an image, forward and backward
# Class, pattern of the kernel's name, pattern of the operator's name. The first match decides.
CLASSES: tuple[tuple[str, str, str], ...] = (
    ("convolution, weight gradient", r"wgrad", r"conv.*weight"),
    ("convolution, input gradient", r"dgrad", r"conv.*input"),
    ("copies and layout", r"memcpy|memset|nchwtonhwc|nhwctonchw|transpose",
     r"aten::(copy_|_to_copy|to|contiguous|clone|fill_|zero_)$"),
    ("batch norm", r"batch_?norm|bn_(fw|bw)|batchnorm", r"batch_norm"),
    ("optimizer", r"multi_tensor|fused_sgd|foreach", r"_foreach|fused_sgd|optimizer"),
    ("pooling", r"pool", r"pool|aten::mean"),
    ("convolution, backward", r"$^", r"convolution_backward"),
    ("convolution, forward", r"fprop|conv(?!ert)|implicit_gemm", r"conv"),
    ("linear", r"gemm|nvjet|cutlass|splitk", r"aten::(addmm|mm|linear|matmul)"),
    ("relu, addition, other elementwise", r"elementwise|relu|triton_poi|vectorized", r"relu|add|mul|threshold|div|sub"),
)  # fmt: skip
ROUNDING_MS = 1e-6
PROFILED_S = 0.1  # seconds of launching: several steps


def rates(job: Job) -> tuple[list[float], list[float]]:
    """Measure TB/s of a copy on the device (read plus written) and TFLOP/s of a bf16 matmul: the repeats of each."""
    from torch.utils.benchmark import Timer  # imported here since it prints a line on machines without a GPU

    source, side = torch.empty(job.scale.copy_bytes, dtype=torch.uint8, device=job.device), job.scale.matmul_side
    a, b = (torch.randn(side, side, device=job.device, dtype=torch.bfloat16) for _ in range(2))
    copy = Timer("out.copy_(source)", globals={"out": torch.empty_like(source), "source": source})
    product = Timer("a @ b", globals={"a": a, "b": b})
    copies, products = (timer.blocked_autorange(min_run_time=job.scale.seconds).times for timer in (copy, product))
    return [2 * source.nbytes / s / 1e12 for s in copies], [2 * side**3 / s / 1e12 for s in products]


def device(job: Job) -> None:
    env, (copies, products) = job.env, rates(job)
    job.report.row("device", text=f"{env['gpu'] or env['cpu']}, driver {env['gpu_driver']}, CUDA {env['cuda']}")
    job.report.row("copy", copies, "TB/s")
    job.report.row(f"bf16 matmul of {job.scale.matmul_side}", products, "TFLOP/s")


def class_of(kernel: str, operator: str = "") -> str:
    """Return one of CLASSES, or "other".

    The name of a kernel fused by torch.compile lists everything in it, so BatchNorm comes before the elementwise class.
    """
    kernel, operator = kernel.lower(), operator.lower()
    for name, in_kernel, in_operator in CLASSES:
        if re.search(in_kernel, kernel) or (operator and re.search(in_operator, operator)):
            return name
    return "other"


def by_class(events: Iterable[FunctionEvent], on_gpu: bool) -> dict[tuple[str, str], float]:
    """Sum a profile's milliseconds by class and kernel. On the CPU, an operator's own time counts.

    An operator lists the kernels that it launched and how long each took. The kernel's name is not enough, since
    several operators share one, for example a convolution's forward pass and its gradient. A kernel without an
    operator is classed by its name.
    """
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    unclaimed: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if getattr(event, "is_user_annotation", False):
            continue  # a span over kernels that are counted individually
        if not on_gpu:
            found[class_of("", event.name), event.name] += event.self_cpu_time_total / 1e3
        elif event.device_type == DeviceType.CPU:
            for kernel in event.kernels:
                found[class_of(kernel.name, event.name), kernel.name] += kernel.duration / 1e3
                unclaimed[kernel.name] -= kernel.duration / 1e3
        else:
            unclaimed[event.name] += event.time_range.elapsed_us() / 1e3
    for name, ms in unclaimed.items():
        if ms > ROUNDING_MS:
            found[class_of(name), name] += ms
    return found


def profile_step(job: Job) -> None:
    """Profile a step: eager in both precisions, and compiled in bf16."""
    copies, products = rates(job)
    size, bandwidth, flops = job.scale.batch_size, 1e12 * max(copies), 1e12 * max(products)
    for kind, count in STEP_BYTES.items():
        job.report.row(f"bound by {kind} bytes", 1e3 * count * size / bandwidth, f"ms per step of {size}",
                       f"{bandwidth / count:,.0f} images/s")  # fmt: skip
    job.report.row("bound by FLOP", 1e3 * STEP_FLOP * size / flops, "ms", f"{flops / STEP_FLOP:,.0f} images/s")
    modes = {"bf16 eager": ("bf16", EAGER), "fp16 eager": ("fp16", EAGER), "bf16 compiled": ("bf16", COMPILED)}
    for name, (precision, sets) in list(modes.items())[: 1 if job.rehearse else 3]:
        with job.report.attempt(name):
            profiled(job, name, (f"train.precision={precision}", *sets))


def profiled(job: Job, name: str, sets: tuple[str, ...]) -> None:
    program = build(job, "compute", sets)
    program.run(job.scale.seconds / 2)
    activities = [ProfilerActivity.CPU, *([] if job.rehearse else [ProfilerActivity.CUDA])]
    with profile(activities=activities) as profiler:
        program.run(PROFILED_S)
    program.close()
    events = profiler.events() or ()
    num_steps = sum(one.device_type == DeviceType.CPU and one.name.startswith("Optimizer.step#") for one in events)
    found = {key: ms / num_steps for key, ms in by_class(events, not job.rehearse).items()}
    total: defaultdict[str, float] = defaultdict(float)
    for (kind, _), ms in found.items():
        total[kind] += ms
    whole = sum(total.values())
    job.report.row(f"{name}: kernels", whole, f"ms per step of {job.scale.batch_size}")
    for kind, ms in sorted(total.items(), key=lambda one: -one[1]):
        of_kernels = {kernel: spent for (of_kind, kernel), spent in found.items() if of_kind == kind}
        job.report.row(f"{name}: {kind}", ms, "ms", f"{ms / whole:.0%}", details=of_kernels)
