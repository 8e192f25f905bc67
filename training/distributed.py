"""Processes of a run: who am I, agree with the others, stop together. Works the same under `python` and `torchrun`.

A world of one has no process group, and every function here is then a no-op on it. `sum_tensor` and the model's
gradients go over NCCL on GPUs; the stop flag always goes over gloo, on the CPU, so that it never waits for a GPU.
"""

import datetime
import inspect
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from penstock.training import environment
from penstock.training.request import Device

SignalHandler = Callable[[int, FrameType | None], object] | int | None  # what `signal.signal` gives back
WATCHDOG_FIRST_S = 60.0  # by which a collective waits longer than the watchdog


@dataclass(frozen=True)
class World:
    """This process among the processes of the run; `local` means on this machine."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    notices: "Notices | None" = field(default=None, compare=False)  # None in a world of one

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(device: Device = "auto", timeout_s: float = 600.0) -> World:
    """Read torchrun's environment, or answer rank 0 of 1 without it; join the process group; choose the device.

    `auto` is CUDA where torch sees a GPU. `timeout_s` is how long to wait for the other ranks at the start. Collectives
    wait a little longer, so that the watchdog, which knows for whom, comes first.

    Raises ValueError for a device that is not one of the three, and for CUDA with fewer GPUs than processes here.
    """
    environment.separate_streams()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch_device = _choose_device(device, local_rank, local_world_size)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    notices = None
    if world_size > 1:
        on_gpu = torch_device.type == "cuda"
        store = _fresh_store(rank, world_size, timeout_s)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s + WATCHDOG_FIRST_S),
            device_id=torch_device if on_gpu else None,
        )
        notices = Notices(store, rank, world_size)
    return World(rank, local_rank, world_size, local_world_size, torch_device, notices)


def _choose_device(device: str, local_rank: int, local_world_size: int) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r}: expected auto, cpu or cuda")
    if device != "cpu" and local_rank == 0 and (line := environment.too_old_driver()):
        print(line, file=sys.stderr)
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
        raise ValueError(f"device cuda: torch sees no GPU (torch {torch.__version__} {built}); use cpu or auto")
    num_gpus = torch.cuda.device_count()
    if local_world_size > num_gpus:
        raise ValueError(f"device cuda: {local_world_size} processes on this machine, but {num_gpus} GPUs")
    return torch.device("cuda", local_rank)


def _fresh_store(rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """The launcher's store, in a namespace that the ranks of this start agree on.

    torchrun keeps one store over its restarts, and ranks that are restarted would find the addresses of dead ones there
    (pytorch/pytorch issue 135712; seen with torch 2.15). Here too every key may be left from an earlier start. But
    rank 0 answers to tokens alone that were sent in answer to its own new one, and each rank waits for its own.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=timeout_s)))
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    if rank == 0:
        store.set("call", own)
        for other in range(1, world_size):
            store.set(f"go/{store.get(f'answer/{own}/{other}').decode()}", own)
        return dist.PrefixStore(own, store)
    while True:
        call = store.get("call").decode()
        store.set(f"answer/{call}/{rank}", own)
        try:
            store.wait([f"go/{own}"], datetime.timedelta(seconds=0.5))
        except dist.DistStoreError:  # the call was an earlier start's, or others are late
            if time.monotonic() > deadline:
                raise
            continue
        return dist.PrefixStore(store.get(f"go/{own}").decode(), store)


class Notices:
    """A line of text of each rank, for all ranks to read.

    They go through the launcher's store, over a connection of their own: while collectives wait, and from any thread.
    A store that does not answer takes no notices and gives none: the launcher is gone, and collectives will say so.
    """

    _ANSWER_S = 10.0

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = store.clone()
        self._store.set_timeout(datetime.timedelta(seconds=self._ANSWER_S))
        self._keys = [f"notice/{rank}" for rank in range(world_size)]
        self._own = self._keys[rank]

    def post(self, text: str) -> None:
        with suppress(RuntimeError):
            self._store.set(self._own, text)

    def read(self) -> list[str]:
        """The ranks' last ones; "" for a rank that has posted none."""
        try:
            return [self._store.get(key).decode() if self._store.check([key]) else "" for key in self._keys]
        except RuntimeError:
            return ["" for _ in self._keys]


def lost_rank(error: RuntimeError) -> str | None:
    """What a collective says where another rank has gone, in one line; None for any other error."""
    text = str(error)
    if not isinstance(error, dist.DistError) and "gloo" not in text:
        return None
    line = text.strip().partition("\n")[0].partition(". This is typically")[0]
    return line.partition(".cc:")[2].partition("] ")[2] or line  # without the place in gloo's source


def finish() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def sum_tensor(tensor: Tensor) -> Tensor:
    """Add up `tensor` over the ranks, in place, and return it; on CPU or GPU, without waiting for the GPU."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def from_rank_0(value: float, world: World) -> float:
    """Rank 0's `value`, the same on each: for clocks, which differ."""
    contribution = value if world.is_main else 0.0
    return float(sum_tensor(torch.tensor(contribution, dtype=torch.float64)).item())


def gather(value: int, world: World) -> list[int]:
    """Every rank's `value`, in the order of the ranks, the same list on each."""
    values = torch.zeros(world.world_size, dtype=torch.int64)
    values[world.rank] = value
    return list(sum_tensor(values).tolist())


def union(ids: set[int], world: World) -> set[int]:
    """The ids of all ranks together, the same set on each."""
    counts = gather(len(ids), world)
    start = sum(counts[: world.rank])
    joined = torch.zeros(sum(counts), dtype=torch.int64)
    joined[start : start + len(ids)] = torch.tensor(sorted(ids), dtype=torch.int64)
    return set(sum_tensor(joined).tolist())


def first_start(world: World) -> float:
    """When the ranks were first started, `time.time()`, the same on each: torchrun's restarts keep it."""
    now = time.time()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, _, _ = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=WATCHDOG_FIRST_S)))
        now = float(store.compare_set("first start", "", repr(now)).decode())
    return from_rank_0(now, world)


def wrap(
    net: nn.Module, world: World, *, sync_batch_norm: bool = False, static_graph: bool = False
) -> tuple[nn.Module, nn.Module]:
    """(net, model): the model is the net in DistributedDataParallel, which averages gradients over ranks; in a world of
    one it is the net. The first of the two is the given net, or its copy with BatchNorm over all ranks.

    Gradients are views of the communication buckets, which saves one copy of all gradients in memory and time.
    `static_graph`: every step runs the same operations, so that DDP need not search for what went unused; not for a
    model that is compiled (pytorch/pytorch issue 93672). Buffers are each rank's own in training, which saves a
    broadcast a step: those of rank 0 count, in validation (`broadcast_buffers`) and in checkpoints.

    Raises ValueError for BatchNorm over ranks on the CPU, where torch has none.
    """
    if sync_batch_norm and world.device.type != "cuda":
        raise ValueError("model.sync_batch_norm needs GPUs; set it to false")
    if world.world_size == 1:
        return net, net
    if sync_batch_norm:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    ddp = partial(DistributedDataParallel, net, device_ids=device_ids, gradient_as_bucket_view=True,
                  static_graph=static_graph)  # fmt: skip
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:  # torch 2.15
        return net, ddp(forward_sync_buffers=False)
    return net, ddp(broadcast_buffers=False)


def broadcast_buffers(nets: Iterable[nn.Module]) -> None:
    """Give every rank the buffers (BatchNorm statistics) of rank 0, which are those that it saves.

    Each rank's are of its own batches; call this before validating, so that all ranks score the same networks.
    """
    if dist.is_initialized():
        for net in nets:
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)


class Interrupted(BaseException):
    """A signal came and the run ends; the argument is the signal's name.

    It can come anywhere, in a compiler's `except Exception` too, and must get through there.
    """


class StopFlag:
    """SIGTERM or SIGINT on any rank → all ranks stop at the same step. A second SIGINT interrupts at once.

    A context manager: it puts back the previous handlers. Use it in the main thread. Until `armed`, there is nothing to
    finish: a signal raises `Interrupted` where the program is, in the compilation of the first step for one.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    # One Ctrl-C can arrive twice: from the terminal and again from a launcher that passes it on.
    SAME_INTERRUPT_S = 0.5

    def __init__(self) -> None:
        self.armed = False
        self.signal: str | None = None  # the name of the signal that this rank received
        self._time = 0.0
        self._pending: tuple[dist.Work, Tensor] | None = None
        self._previous: dict[signal.Signals, SignalHandler] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the other ranks may be gone: waiting for them would hide it behind a timeout.
        if self._pending is not None and error is None:
            self._pending[0].wait()
        self._pending = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.signal is not None and now - self._time > self.SAME_INTERRUPT_S:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._time = signal.Signals(number).name, now
            if not self.armed:
                raise Interrupted(self.signal)

    def agreed(self) -> bool:
        """Whether to stop now, the same answer on every rank. Every rank calls this once a step.

        With several ranks the answer is that of the previous step's reduction, which had a whole step to complete:
        nothing waits for it, and a stop comes at most two steps after the signal.
        """
        if not dist.is_initialized():
            return self.signal is not None
        stop = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            stop = bool(flag.item())
        flag = torch.tensor([int(self.signal is not None)], dtype=torch.int32)
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._pending = work, flag
        return stop
