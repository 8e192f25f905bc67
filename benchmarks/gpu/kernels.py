"""The stage `profile`: milliseconds of one training step by class of kernel, beside what the bytes and FLOP allow.

A kernel's class is told by the operator that launched it, where the profiler links the two, and by its own name.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import profile

from benchmarks.gpu import compute, device
from benchmarks.gpu.expected import STEP_BYTES, STEP_FLOP
from benchmarks.gpu.stage import Job

# In order: class, pattern of the kernel's name, pattern of the operator's; the first that fits is it.
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
OTHER = "other"
ROUNDING_MS = 1e-6
PROFILED_S = 0.1  # of launching: some steps


def class_of(kernel: str, operator: str = "") -> str:
    """One of CLASSES, or OTHER. What torch.compile fused is named after all that is in it: BatchNorm comes first."""
    kernel, operator = kernel.lower(), operator.lower()
    for name, in_kernel, in_operator in CLASSES:
        if re.search(in_kernel, kernel) or (operator and re.search(in_operator, operator)):
            return name
    return OTHER


def by_class(events: Iterable[Any], on_gpu: bool) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Milliseconds of a profile by class, and of each class by kernel. On the CPU an operator's own time is it.

    An operator knows the kernels that it launched and how long each took: several operators share a kernel's name, a
    convolution's forward pass and its gradient too. What no operator claims is told by its name.
    """
    total: Counter[str] = Counter()
    kernels: dict[str, Counter[str]] = {}

    def add(name: str, operator: str, ms: Any) -> None:  # typeshed's Counter holds whole numbers
        kind = class_of(name if on_gpu else "", operator)
        total[kind] += ms
        kernels.setdefault(kind, Counter())[name[:90]] += ms

    unclaimed: dict[str, float] = defaultdict(float)
    for event in events:
        if getattr(event, "is_user_annotation", False):
            continue  # a span over kernels that count by themselves
        if not on_gpu and is_cpu(event):
            add(event.name, event.name, event.self_cpu_time_total / 1e3)
        elif on_gpu and is_cpu(event):
            for kernel in event.kernels:
                add(kernel.name, event.name, kernel.duration / 1e3)
                unclaimed[kernel.name] -= kernel.duration / 1e3
        elif on_gpu:
            unclaimed[event.name] += event.time_range.elapsed_us() / 1e3
    for name, ms in unclaimed.items():
        if ms > ROUNDING_MS:
            add(name, "", ms)
    return total, kernels


def is_cpu(event: Any) -> bool:
    return bool(event.device_type == torch.autograd.DeviceType.CPU)


def profile_step(job: Job) -> None:
    """Eager in both precisions, and compiled in bf16."""
    copies, products = device.rates(job)
    bandwidth, flops, size = 1e12 * max(copies), 1e12 * max(products), job.scale.batch_sizes[0]
    for kind, count in STEP_BYTES.items():
        job.report.row(f"bound by {kind} bytes", 1e3 * count * size / bandwidth, f"ms a step of {size}",
                       text=f"{bandwidth / count:,.0f} images/s")  # fmt: skip
    job.report.row("bound by FLOP", 1e3 * STEP_FLOP * size / flops, "ms", text=f"{flops / STEP_FLOP:,.0f} images/s")
    modes = [("bf16", "false"), ("fp16", "false"), ("bf16", "true")] if job.on_gpu else [("fp32", "false")]
    for precision, compile_it in modes:
        name = f"{precision} {'compiled' if compile_it == 'true' else 'eager'}"
        with job.report.attempt(name):
            profiled(job, name, size, f"train.precision={precision}", f"model.compile={compile_it}")
        compute.free()


def profiled(job: Job, name: str, size: int, *sets: str) -> None:
    program = compute.build(job, size, *sets, name=name)
    program.run(job.scale.seconds / 2)
    with profile(activities=device.activities(job.device)) as profiler:
        program.run(PROFILED_S)
        device.sync(job.device)
    events = profiler.events()
    num_steps = sum(is_cpu(event) and event.name.startswith("Optimizer.step#") for event in events)
    total, kernels = by_class(events, job.on_gpu)
    program.close()
    whole = sum(total.values()) / num_steps
    job.report.row(f"{name}: kernels", whole, f"ms a step of {size}")
    for kind, ms in total.most_common():
        top = {kernel: round(spent / num_steps, 4) for kernel, spent in kernels[kind].most_common(6)}
        job.report.row(f"{name}: {kind}", ms / num_steps, "ms", text=f"{ms / num_steps / whole:.0%}", kernels=top)
