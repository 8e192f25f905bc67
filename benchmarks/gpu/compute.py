"""Stages of the part `compute`: ResNet-50's step on a batch that is there already, in every way that it can be run.

Each is this project's own step (`build_learner`, `train_step`), as `bench.py compute` has it.
"""

import contextlib
import gc
import io
import runpy
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import programs
from benchmarks.gpu import data
from benchmarks.gpu.expected import OF_BARE_LOOP, TOLERANCE, step_goal
from benchmarks.gpu.report import Skipped
from benchmarks.gpu.stage import Job
from benchmarks.measure import Program, Sample, in_turn, ratio
from benchmarks.programs import BatchProgram
from shards.format import ShardSet
from training import environment

ROOT = Path(__file__).parents[2]
BARE_LOOP = Path(__file__).with_name("bare_loop.py")
OFTEN = 0.5  # waits a step


def dataset_of(job: Job) -> ShardSet:
    """A set of which only the table and the classes are used."""
    classes = job.scale.num_classes
    return data.packed(job.work, "420", num_train=max(64, classes), num_val=8, num_classes=classes, side=32)


def build(job: Job, batch_size: int, *sets: str, name: str = "") -> BatchProgram:
    """The project's step on batches made up, with the kernels chosen as train.py chooses them."""
    environment.choose_kernels()
    recipe = job.resnet(*sets)
    program = programs.build("compute", "synthetic", recipe, dataset_of(job), job.world, batch_size)
    program.name = name or f"batch {batch_size}, {', '.join(sets)}"
    return program


def measured(job: Job, built: Sequence[Program], kind: str = "") -> dict[str, list[float]]:
    """Time programs in turn, a row each beside the goal of `kind`, and close them. Returns images/s by name."""
    goal = step_goal(kind, job.bounds) if kind else None
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    samples = in_turn(built, job.scale.seconds, job.scale.repeats)
    memory_gb = torch.cuda.max_memory_allocated() / 1e9 if job.on_gpu else None
    rates = {name: [sample.images_per_s for sample in taken] for name, taken in samples.items()}
    for program in built:
        size = getattr(program, "batch_size", None)
        ms = f"{1e3 * size / max(rates[program.name]):.1f} ms a step at best" if size else ""
        job.report.row(program.name, rates[program.name], "images/s", at_least=goal and TOLERANCE * goal, text=ms,
                       memory_gb=memory_gb)  # fmt: skip
        program.close()
    return rates


def free() -> None:
    """What a program that is gone has left on the GPU, CUDA graphs and compiled code included."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def eager(job: Job) -> None:
    """bf16 and fp16, in turn, at each batch size."""
    for size in job.scale.batch_sizes:
        with job.report.attempt(f"eager, batch {size}"):
            compared(job, size, "eager", "model.compile=false")
        free()


def compared(job: Job, size: int, mode: str, *sets: str) -> None:
    """bf16 beside fp16 in one mode, and their ratio."""
    built = [
        timed_build(job, size, f"train.precision={precision}", *sets, name=f"{precision} {mode}, batch {size}")
        for precision in job.scale.precisions
    ]
    rates = measured(job, built, "eager" if mode == "eager" else "fused")
    (first, ours), (second, theirs) = zip(job.scale.precisions, rates.values(), strict=True)
    found = ratio(theirs, ours)
    job.report.row(
        f"{second} / {first} {mode}, batch {size}", found.median, "times", text=f"[{found.min:.3f}–{found.max:.3f}]"
    )


def timed_build(job: Job, size: int, *sets: str, name: str) -> BatchProgram:
    """`build`, and a row of the seconds until its first steps are done: what compiling takes."""
    program = build(job, size, *sets, name=name)
    program.batch_size = size  # type: ignore[attr-defined]
    started = time.perf_counter()
    program.run(1e-3)
    job.report.row(f"{name}: first step", time.perf_counter() - started, "s", shown="eager" not in name)
    return program


def compiled(job: Job, mode: str, size: int, precisions: Sequence[str] = ("bf16",)) -> None:
    """One of torch.compile's modes at one batch size. A mode with CUDA graphs keeps its memory, so that each program
    runs alone."""
    if not job.on_gpu:
        if mode != "default":
            raise Skipped("needs a GPU (one mode of torch.compile is rehearsed)")
        precisions = ("fp32",)  # bf16 is emulated on most CPUs
    job.report.settings(mode=mode, batch_size=size)
    for precision in precisions:
        name = f"{precision} {mode}, batch {size}"
        with job.report.attempt(name):
            sets = (f"train.precision={precision}", "model.compile=true", f"model.compile_mode={mode}")
            measured(job, [timed_build(job, size, *sets, name=name)], "fused")
        free()


def default(job: Job) -> None:
    compiled(job, "default", job.scale.batch_sizes[0], ("bf16", "fp16"))


def default_large(job: Job) -> None:
    if len(job.scale.batch_sizes) == 1:
        raise Skipped("needs a GPU (one batch size is rehearsed)")
    compiled(job, "default", job.scale.batch_sizes[-1], ("bf16", "fp16"))


def reduce_overhead(job: Job) -> None:
    compiled(job, "reduce-overhead", job.scale.batch_sizes[0])


def autotune(job: Job) -> None:
    compiled(job, "max-autotune-no-cudagraphs", job.scale.batch_sizes[0])


def autotune_graphs(job: Job) -> None:
    compiled(job, "max-autotune", job.scale.batch_sizes[0])


def cudnn(job: Job) -> None:
    """cudnn.benchmark off: what choosing the kernels by trial is worth. The other figure is the stage eager's."""
    size = job.scale.batch_sizes[0]
    for precision in job.scale.precisions:
        name = f"{precision} eager, batch {size}, cudnn.benchmark off"
        program = build(job, size, f"train.precision={precision}", "model.compile=false", name=name)
        torch.backends.cudnn.benchmark = False  # after `build`, which switches it on, and before the first step
        measured(job, [program])
        free()


class BareLoop:
    """The 30 lines of `bare_loop.py`, run as they are, in this process."""

    name = "bare loop"

    def __init__(self, job: Job, size: int) -> None:
        scale = job.scale
        dtype = "bfloat16" if job.on_gpu else "float32"
        network = scale.network if job.on_gpu else "resnet18"  # it knows torchvision's only
        self._arguments = [network, scale.num_classes, scale.image_size, size, dtype, scale.bare_steps]

    def run(self, seconds: float) -> Sample:
        """`seconds` is not asked: the loop has a number of steps."""
        before, printed = sys.argv, io.StringIO()
        sys.argv = [str(BARE_LOOP), *map(str, self._arguments)]
        try:
            with contextlib.redirect_stdout(printed):
                runpy.run_path(str(BARE_LOOP))
        finally:
            sys.argv = before
        return Sample(float(printed.getvalue().split()[-1]))

    def close(self) -> None: ...


def bare(job: Job) -> None:
    """The project's step and a bare loop of the same network, in turn: what all that surrounds a step costs it."""
    size = job.scale.batch_sizes[0]
    network = () if job.on_gpu else ("model.name=resnet18", "train.precision=fp32")
    ours = build(job, size, "model.compile=false", *network, name="ours")
    theirs, seconds = BareLoop(job, size), job.scale.seconds
    ours.run(seconds)
    pairs = [(ours.run(seconds).images_per_s, theirs.run(seconds).images_per_s) for _ in range(job.scale.turns)]
    ours.close()
    rates = [list(one) for one in zip(*pairs, strict=True)]
    job.report.row("ours, eager", rates[0], "images/s")
    job.report.row("bare loop", rates[1], "images/s")
    found = ratio(rates[0], rates[1])
    job.report.row("ours / bare loop", found.median, "times", at_least=OF_BARE_LOOP,
                   text=f"[{found.min:.3f}–{found.max:.3f}]", **found._asdict())  # fmt: skip


def syncs(job: Job) -> None:
    """train.py for some steps, and for twice as many, every wait for the device noted with the line of ours that it
    comes from. What the second run has more of comes with the steps: a place that waits in every other step, or more
    often, is wrong; the flush of the log may, once an interval."""
    import train

    steps = job.scale.sync_steps
    sets = ["data.loader=synthetic", f"train.global_batch_size={job.scale.batch_sizes[0] if job.on_gpu else 8}",
            f"train.log_every={steps}", f"model.name={job.scale.network}", "model.compile=false",
            f"data.image_size={job.scale.image_size}", "ema.decay=0.999", "train.clip_grad_norm=1.0"]  # fmt: skip
    num_train = 2 * steps * int(sets[1].partition("=")[2])  # so that both runs end in the first epoch
    dataset = data.packed(job.work, "444", num_train=num_train, num_val=8, num_classes=10, side=32)
    arguments = ["--data", str(dataset.root), "--recipe", "rn50-90ep", "--device", job.device.type]
    arguments += ["--no-machine-config", *(part for value in sets for part in ("--set", value))]
    job.report.settings(arguments=arguments)

    def waits_of(count: int) -> Counter[str]:
        run = ["--run-dir", str(job.work / f"syncs-{count}"), "--max-steps", str(count)]
        with waits(job) as found:
            train.main([*arguments, *run], standalone_mode=False)
        return found

    waits_of(1)  # what waits in a process's first run only would be missing in the difference
    some, twice, often = waits_of(steps), waits_of(2 * steps), list[str]()
    for place, rate in a_step(some, twice, steps).items():
        wrong = rate >= OFTEN
        often += [place] * wrong
        job.report.row(place, rate, "waits a step", shown=wrong, right=False if wrong and job.on_gpu else None,
                       text=f"{some[place]} in {steps} steps, {twice[place]} in {2 * steps}")  # fmt: skip
    job.report.row("waits once a step or so", float(len(often)), "places", text=", ".join(often),
                   right=not often if job.on_gpu else None)  # fmt: skip


def a_step(some: Counter[str], twice: Counter[str], steps: int) -> dict[str, float]:
    """By place the waits that each step has, the most first: what the run of twice as many steps has more of."""
    rates = {place: max(0.0, (twice[place] - some[place]) / steps) for place in twice | some}
    return dict(sorted(rates.items(), key=lambda one: -one[1]))


@contextlib.contextmanager
def waits(job: Job) -> Iterator[Counter[str]]:
    """Count the synchronisations of what runs inside by the project's line that caused them: on a GPU those that
    PyTorch warns of, on the CPU the reads of a tensor's value, which would be one there."""
    found: Counter[str] = Counter()
    if not job.on_gpu:
        with ItemReads(found):
            yield found
        return

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            found[our_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


class ItemReads(TorchDispatchMode):
    """Counts `.item()`, `.tolist()` of one element, `bool(tensor)` and the like."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self._found[our_line()] += 1
        return func(*args, **(kwargs or {}))


def our_line() -> str:
    """The innermost line of this project's on the stack, outside of this package."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        inside = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        if inside and not path.is_relative_to(Path(__file__).parent):
            return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.line}"[:100]
    return "not from a line of this project"
