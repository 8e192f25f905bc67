"""Stages of the device itself: bandwidth, matmul, copies to it, and which BatchNorm PyTorch takes. No data needed."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import programs
from benchmarks.gpu import data
from benchmarks.gpu.expected import TOLERANCE
from benchmarks.gpu.stage import Job
from benchmarks.measure import in_turn
from training.clock import mark, seconds, wait_for

TURNS = 5
TURN_S = 0.2


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(work: Callable[[], object], device: torch.device, turn_s: float, turns: int) -> list[float]:
    """Seconds of one call of `work`, the mean of each of some turns, by events on a GPU; after a warm-up."""
    for _ in range(3):
        work()
    sync(device)
    started = time.perf_counter()
    work()
    sync(device)
    count = max(1, round(turn_s / max(time.perf_counter() - started, 1e-6)))
    found = []
    for _ in range(turns):
        begin = mark(device)
        for _ in range(count):
            work()
        over = mark(device)
        wait_for(over)
        found.append(seconds(begin, over) / count)
    return found


def rates(job: Job) -> tuple[list[float], list[float]]:
    """TB/s of a copy on the device, read and written, and TFLOP/s of a bf16 matmul: the repeats of each."""
    device, side = job.device, job.scale.matmul_side
    source = torch.empty(job.scale.copy_bytes, dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    copies = [2 * source.nbytes / s / 1e12 for s in seconds_each(copy, device, TURN_S, TURNS)]
    del copy, source
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    products = seconds_each(partial(torch.mm, a, b), device, TURN_S, TURNS)
    return copies, [2 * side**3 / s / 1e12 for s in products]


def device(job: Job) -> None:
    env, report, bounds = job.env, job.report, job.bounds
    report.row(
        "device", text=f"{env['gpu'] or env['cpu']}, driver {env['gpu_driver']}, power {env['gpu_power_limit_w']} W"
    )
    known = env["packages"] | env["versions"] | {"cuda": env["cuda"], "cudnn": env["cudnn"]}
    report.row("versions", text=", ".join(f"{name} {version}" for name, version in known.items()), shown=False)
    copies, products = rates(job)
    report.row("copy", copies, "TB/s", at_least=bounds and TOLERANCE * bounds.copy_tb_s)
    report.row(f"bf16 matmul of {job.scale.matmul_side}", products, "TFLOP/s",
               at_least=bounds and TOLERANCE * bounds.matmul_tflops)  # fmt: skip
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        with report.attempt(f"BatchNorm, {name}"):
            batch_norm(job, dtype, name)


def batch_norm(job: Job, dtype: torch.dtype, name: str) -> None:
    """Which BatchNorm eager PyTorch takes for channels-last images, how long it takes, and its kernels' names."""
    size = (64, 256, 56, 56) if job.on_gpu else (2, 8, 8, 8)
    device, report = job.device, job.report
    images = torch.randn(size, device=device).to(dtype, memory_format=torch.channels_last).requires_grad_()
    norm = torch.nn.BatchNorm2d(size[1]).to(device)
    gradient = torch.ones_like(images)

    def step() -> None:
        norm(images).backward(gradient)
        images.grad = None

    taken = [1e3 * s for s in seconds_each(step, device, TURN_S / 4, TURNS)]
    with profile(activities=activities(device)) as profiler:
        step()
        sync(device)
    kernels = kernel_names(profiler.events(), device)
    report.row(f"BatchNorm, {name}", taken, "ms", text=chosen_norm(images, norm), kernels=kernels,
               gigabytes=images.nbytes / 1e9)  # fmt: skip


def chosen_norm(images: torch.Tensor, norm: torch.nn.BatchNorm2d) -> str:
    """What PyTorch says it takes, where it can be asked (not a public function)."""
    ask: Any = getattr(torch._C, "_select_batch_norm_backend", None)
    if ask is None:
        return "backend by the kernels' names only"
    answer = ask(images, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.eps)
    return str(answer).rpartition(".")[2]


def activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


def kernel_names(events: Iterable[Any], device: torch.device) -> list[str]:
    """Of what ran on a GPU; on the CPU the operators that stand for it."""
    on_gpu = device.type == "cuda"
    names = [
        event.name for event in events if (event.device_type == torch.autograd.DeviceType.CUDA) == on_gpu
        and (on_gpu or "norm" in event.name)
    ]  # fmt: skip
    return list(dict.fromkeys(names))


def h2d(job: Job) -> None:
    """Copies of a batch as `bench.py h2d` has them."""
    recipe, size = job.resnet(), job.scale.batch_sizes[0]
    dataset = data.packed(job.work, "444", num_train=64, num_val=8, num_classes=10, side=32)
    built = programs.build_copies(recipe, dataset, job.world, size)
    image_bytes = programs.image_bytes(recipe, job.world)
    for name, samples in in_turn(built, job.scale.turn_s, job.scale.turns).items():
        found = [sample.images_per_s for sample in samples]
        gigabytes = max(found) * image_bytes / 1e9
        job.report.row(f"{name}, batch of {size}", found, "images/s", text=f"{gigabytes:.1f} GB/s at best")
