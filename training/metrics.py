"""What a run measures: losses of consecutive steps without a synchronisation per step, and where the figures go.

`StepLog` collects an interval of steps on the device and turns it into one dict a step; `MetricsLog` writes dicts to
`RUN/metrics.jsonl` and to the trackers, and pictures to the trackers.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from training.sheet import draw_sheet
from training.trackers import TensorBoard, WeightsAndBiases

T = TypeVar("T")

METRICS_FILE = "metrics.jsonl"
_INT63 = 2**63 - 1
_NOT_PLOTTED = ("step", "epoch", "position")


class MetricsLog:
    """Appends to `RUN/metrics.jsonl`, one JSON object a line with `kind` first, and to TensorBoard and W&B.

    NaN and infinities have no JSON; they are written as null. Disabled (all ranks but 0), it does nothing.
    """

    def __init__(self, run_dir: Path, enabled: bool = True, *, wandb: str = "") -> None:
        """`wandb`: a Weights & Biases project, or "". Raises ValueError where the package or the login is missing."""
        self._enabled = enabled
        self._trackers: list[TensorBoard | WeightsAndBiases] = []
        if enabled:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._trackers = [TensorBoard(run_dir), *([WeightsAndBiases(run_dir, wandb)] if wandb else [])]
            self._file = (run_dir / METRICS_FILE).open("a", encoding="utf-8")
            if self._file.tell() and not _ends_with_newline(run_dir / METRICS_FILE):
                self._file.write("\n")  # a killed run's last line: keep it from swallowing the next one

    def step(self, **fields: Any) -> None:
        """One training step: what `StepLog.flush` gives."""
        self.write("step", **fields)
        self._plot("train", fields)

    def eval(self, kind: Literal["eval", "test"] = "eval", **fields: Any) -> None:
        """One validation, or the test split's at the end: step, epoch, position, top1, top5, loss, num_images, and
        with an average of the weights also ema_top1, ema_top5, ema_loss."""
        self.write(kind, **fields)
        self._plot({"eval": "val", "test": "test"}[kind], fields)

    def images(self, tag: str, images: Any, captions: Sequence[str], step: int) -> None:
        """A sheet of images with captions, as `draw_sheet` has them: not a line, but for TensorBoard and W&B."""
        if self._enabled and len(images):
            self.picture(tag, draw_sheet(images, captions), step)

    def picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """One picture, (H, W, 3) uint8, for TensorBoard and W&B."""
        for tracker in self._trackers:
            tracker.image(tag, picture, step)

    def write(self, kind: str, **fields: Any) -> None:
        """One line of any kind, on disk when this returns (as far as the operating system is concerned)."""
        if not self._enabled:
            return
        line = {"kind": kind} | {name: _json_value(value) for name, value in fields.items()}
        self._file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Have all lines on the disk itself, as a checkpoint is: or a power cut could leave less of them."""
        if self._enabled:
            os.fsync(self._file.fileno())

    def _plot(self, group: str, fields: dict[str, Any]) -> None:
        plotted = (
            name for name, value in fields.items() if name not in _NOT_PLOTTED and isinstance(value, int | float)
        )
        values = {f"{group}/{name}": fields[name] for name in plotted}
        for tracker in self._trackers:
            tracker.scalars(values, fields["step"])

    def close(self, failed: bool = False) -> None:
        if self._enabled:
            self._file.close()
        for tracker in self._trackers:
            tracker.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


class StepLog:
    """The steps since the last flush: losses stay on the device, and time spent waiting for data is measured.

    Nothing here synchronises but `flush`, once. `restart` comes before the first step.

    epoch_digest: of the samples of the epoch's steps up to the last flush, over all ranks: the sum of the steps'
        `sample_digest`s modulo 2^63. total_s, total_wait_s: of all intervals, by this rank's clock.
    """

    def __init__(
        self,
        capacity: int,
        *,
        device: torch.device,
        world_size: int = 1,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """`capacity`: the most steps between two flushes. `sum_over_ranks` adds up a tensor in place."""
        self._losses = torch.zeros(capacity, dtype=torch.float32, device=device)
        self._digests = torch.zeros(capacity, dtype=torch.int64)
        self._steps: list[dict[str, Any]] = []
        self._grad_norms: list[Tensor] = []
        self._global_batch_size = 0
        self.epoch_digest = 0
        self._world_size = world_size
        self._sum_over_ranks = sum_over_ranks
        self.total_wait_s = 0.0
        self.total_s = 0.0

    def restart(self, *, global_batch_size: int, epoch_digest: int) -> None:
        """Begin an epoch, or go on in one: its batch size over all ranks, and the digest of its samples so far.

        The interval's clock starts anew, so that a validation's time counts for nothing.
        """
        self._global_batch_size, self.epoch_digest = global_batch_size, epoch_digest
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._started = time.perf_counter()
        self._wait_s = 0.0
        self._gpu_waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, with the wait for each measured.

        On a GPU that is how long the GPU had nothing to do, from the end of the last step's work to the arrival of
        the batch, by CUDA events on the current stream: the CPU runs ahead of the GPU, and its own time in `next`
        would be mostly the wait for the GPU.
        """
        on_gpu = self._losses.device.type == "cuda"
        iterator = iter(batches)
        while True:
            if on_gpu:
                events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                events[0].record()
            started = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if on_gpu:
                events[1].record()
                self._gpu_waits.append(events)
            else:
                self._wait_s += time.perf_counter() - started
            yield batch

    def add(
        self,
        *,
        step: int,
        epoch: int,
        position: int,
        loss: Tensor,
        lr: float,
        sample_ids: Iterable[Tensor] = (),
        grad_norm: Tensor | None = None,
    ) -> None:
        """Note one step: `loss`, this rank's scalar on the device, `sample_ids`, what it was made from, and where it is
        known `grad_norm`, the gradient's 2-norm, the same scalar on each rank."""
        if grad_norm is not None:
            self._grad_norms.append(grad_norm.detach())
        self._losses[len(self._steps)].copy_(loss.detach())
        self._digests[len(self._steps)] = sum(sample_digest(ids) for ids in sample_ids) & _INT63
        self._steps.append({"step": step, "epoch": epoch, "position": position, "loss": math.nan, "lr": lr})

    @property
    def is_full(self) -> bool:
        return len(self._steps) == len(self._losses)

    def flush(self) -> list[dict[str, Any]]:
        """One dict for each step since the last flush.

        Keys: step, epoch, position, loss, lr, grad_norm (where it was taken), images_per_s, data_wait, gpu_memory_gb
        (on a GPU), samples.

        loss: the mean over ranks; NaN and infinities stay. images_per_s: of all ranks, over the interval. data_wait:
        the fraction of the interval, 0 … 1, that this rank waited for data. gpu_memory_gb: the most that torch had
        allocated on this rank's GPU so far, in 10^9 bytes. samples: `sample_digest` of all ranks' samples, in
        hexadecimal: two steps that saw the same samples, on any number of ranks, have the same one.

        Every rank calls this after the same step. The one synchronisation with the device is here.
        """
        if not self._steps:
            return []
        steps, self._steps = self._steps, []
        # The reductions work in place: `add` overwrites what they leave in the buffers.
        losses = (self._sum_over_ranks(self._losses[: len(steps)]) / self._world_size).tolist()
        digests = self._sum_over_ranks(self._digests[: len(steps)]).tolist()
        self.epoch_digest = (self.epoch_digest + sum(digests)) & _INT63
        norms, self._grad_norms = self._grad_norms, []
        norm_fields = [{"grad_norm": norm} for norm in torch.stack(norms).tolist()] if norms else [{}] * len(steps)
        elapsed_s = time.perf_counter() - self._started
        wait_s = self._wait_s + sum(begin.elapsed_time(end) for begin, end in self._gpu_waits) / 1e3
        self.total_s += elapsed_s
        self.total_wait_s += wait_s
        rates = {
            "images_per_s": len(steps) * self._global_batch_size / elapsed_s,
            "data_wait": min(wait_s / elapsed_s, 1.0),
        }
        if self._losses.device.type == "cuda":
            rates["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self._losses.device) / 1e9
        self._restart_clock()
        return [
            fields | {"loss": loss} | norm | rates | {"samples": f"{digest & _INT63:016x}"}
            for fields, loss, norm, digest in zip(steps, losses, norm_fields, digests, strict=True)
        ]


def sample_digest(sample_ids: Tensor) -> int:
    """A 63-bit number that tells a set of samples: the sum of their mixed ids, so order and ranks do not matter.

    `sample_ids`: (N,) int64 on the CPU. The mixing is SplitMix64's (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        x = (sample_ids.numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int((x ^ (x >> np.uint64(31))).sum()) & _INT63


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `RUN/metrics.jsonl`, null as NaN; what has no kind, as where a kill cut it off, is left out.

    Raises ValueError, naming the file, where there is none.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {run_dir} is not a run directory")
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("kind"), str):
            lines.append({name: math.nan if value is None else value for name, value in line.items()})
    return lines


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
