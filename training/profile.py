"""`--profile N`: trace N steps with torch's profiler, for Perfetto or Chrome, and measure the parts of a step.

The ranges are wait (for a batch from the loader), copy (to the device, a part of wait), forward, backward and step (the
optimizer). They appear in the trace. On a GPU they are also NVTX ranges, which `nsys profile` shows. Without --profile
none of this is built.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function, schedule

from penstock.pipeline import ranges
from penstock.training.clock import Mark, mark, seconds, wait_for
from penstock.training.distributed import World

SKIPPED = 10  # steps before the traced ones: they compile, fill the loader's queue and choose kernels
NAMES = ("wait", "copy", "forward", "backward", "step")
VIEWERS = "open it at ui.perfetto.dev or chrome://tracing"


class Profile:
    """Traces the steps SKIPPED … SKIPPED + num_steps - 1 of this command. Call `stepped` after each step.

    Each rank writes its own trace: RUN/trace.json.gz, or trace-rank-R.json.gz with several ranks. If the run ends
    earlier, the trace has the steps until then. Only one run in a process can be profiled at a time.
    """

    def __init__(self, num_steps: int, run_dir: Path, world: World) -> None:
        os.environ.setdefault(
            "KINETO_LOG_LEVEL", "99"
        )  # silences the profiler's lines about its start and missing GPUs
        self._num_steps, self._world, self._done = num_steps, world, 0
        rank = f"-rank-{world.rank}" if world.world_size > 1 else ""
        self.path = run_dir / f"trace{rank}.json.gz"
        self._marks: defaultdict[str, list[tuple[Mark, Mark]]] = defaultdict(list)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (world.device.type == "cuda")
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED - 1, warmup=1, active=num_steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._stack, self._traced, self._waits = ExitStack(), ExitStack(), False

    def __enter__(self) -> "Profile":
        self._stack.enter_context(self._profiler)
        self._stack.enter_context(self._traced)
        return self

    def __exit__(self, *how: object) -> None:
        self._stack.close()  # writes the trace, even if it is not complete

    def stepped(self) -> None:
        """Record that one more step is done."""
        if self._done == SKIPPED + self._num_steps:
            return
        self._done += 1
        if self._done == SKIPPED:
            self._traced.enter_context(ranges.opened_by(self._range))
        if self._done == SKIPPED + self._num_steps:
            self._traced.close()
        self._profiler.step()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)  # on other machines than rank 0's
        profiler.export_chrome_trace(str(self.path))

    @contextmanager
    def _range(self, name: str) -> Iterator[None]:
        on_gpu = self._world.device.type == "cuda"
        with record_function(name), torch.cuda.nvtx.range(name) if on_gpu else nullcontext():
            begin, self._waits = mark(self._world.device), self._waits or name == "wait"
            yield
            if name != "copy" or self._waits:  # but not a copy in a validation
                self._marks[name].append((begin, mark(self._world.device)))
            self._waits &= name != "wait"

    def lines(self) -> list[str]:
        """Lines for the end of the run: the path of the trace, and the mean time of each range in a step."""
        num_steps = self._done - SKIPPED
        if num_steps < 1:
            return [f"profile           none: the first {SKIPPED} steps are not traced, and the run did {self._done}"]
        fewer = f" of the {self._num_steps}" if num_steps < self._num_steps else ""
        lines = [f"profile           {self.path}: {num_steps}{fewer} steps; {VIEWERS}"]
        each_s = {name: self._mean_s(name, num_steps) for name in NAMES}
        total_s = sum(each_s.values()) - each_s["copy"]
        whose = "of the GPU" if self._world.device.type == "cuda" else ""
        for name, mean_s in each_s.items():
            part = ", in wait" if name == "copy" else ""
            lines.append(f"  {name:<15} {1e3 * mean_s:8.2f} ms per step {whose}{mean_s / total_s:7.1%}{part}")
        return lines

    def _mean_s(self, name: str, num_steps: int) -> float:
        for marks in self._marks[name][-1:]:
            wait_for(marks[1])
        return sum(seconds(*marks) for marks in self._marks[name]) / num_steps
