"""The stage `profile`: milliseconds of one training step by class of kernel, beside what the bytes and FLOP allow.

A kernel's class is told by the operator that launched it, where the profiler links the two, and by its own name.
"""

import re
from collections import Counter
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
PROFILED_S = 0.1  # of launching: some steps


def class_of(kernel: str, operator: str = "") -> str:
    """One of CLASSES, or OTHER. What torch.compile fused is named after all that is in it: BatchNorm comes first."""
    kernel, operator = kernel.lower(), operator.lower()
    for name, in_kernel, in_operator in CLASSES:
        if re.search(in_kernel, kernel) or (operator and re.search(in_operator, operator)):
            return name
    return OTHER


def by_class(events: Iterable[Any], on_gpu: bool) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Milliseconds of a profile by class, and of each class by kernel. On the CPU an operator's own time is it."""
    events = list(events)
    launched_by: dict[str, str] = {}
    for event in events:
        for kernel in getattr(event, "kernels", ()):
            launched_by.setdefault(kernel.name, event.name)
    total: Counter[str] = Counter()
    kernels: dict[str, Counter[str]] = {}
    for event in events:
        if is_cpu(event) == on_gpu or getattr(event, "is_user_annotation", False):
            continue  # an annotation is a span over kernels that count by themselves
        if on_gpu:
            ms, name = event.time_range.elapsed_us() / 1e3, class_of(event.name, launched_by.get(event.name, ""))
        else:
            ms, name = event.self_cpu_time_total / 1e3, class_of("", event.name)
        total[name] += ms
        kernels.setdefault(name, Counter())[event.name[:90]] += ms
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
