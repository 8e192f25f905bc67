"""The processes of a run: ranks, agreement between them, and stopping together, under `python` and under `torchrun`.

With a world size of one there is no process group, and every function here is a no-op. On GPUs, `sum_tensor` and the
model's gradients use NCCL. The stop flag always uses gloo on the CPU, so it never waits for a GPU.
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

SignalHandler = Callable[[int, FrameType | None], object] | int | None  # the return type of `signal.signal`
WATCHDOG_FIRST_S = 60.0  # how much longer a collective waits than the watchdog


@dataclass(frozen=True)
class World:
    """This process among the processes of the run; `local` means on this machine."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    notices: "Notices | None" = field(default=None, compare=False)  # None with a world size of one

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(device: Device = "auto", timeout_s: float = 600.0) -> World:
    """Read torchrun's environment, join the process group and choose the device. Without torchrun, be rank 0 of 1.

    `auto` is CUDA if torch sees a GPU. `timeout_s`: how long to wait for the other ranks at the start. Collectives wait
    a little longer. The watchdog therefore reports a hang first, and it can name the rank that hangs.

    Raises ValueError for an unknown device, and for CUDA with fewer GPUs than processes on this machine.
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
        raise ValueError(f"device cuda: torch sees no GPU (torch {torch.__version__} {built}). Use cpu or auto")
    num_gpus = torch.cuda.device_count()
    if local_world_size > num_gpus:
        raise ValueError(
            f"device cuda: {local_world_size} processes on this machine, but only {num_gpus} GPUs. Start one per GPU"
        )
    return torch.device("cuda", local_rank)


def _fresh_store(rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """The launcher's store, in a namespace that the ranks of this start agree on.

    torchrun keeps one store over its restarts, and restarted ranks would find the addresses of dead ones there
    (pytorch/pytorch issue 135712; seen with torch 2.15). Every key used here may also be left from an earlier start.
    But rank 0 accepts only tokens that were sent in answer to its own new token, and each rank waits for its own.
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
        except dist.DistStoreError:  # the call is from an earlier start, or other ranks are late
            if time.monotonic() > deadline:
                raise
            continue
        return dist.PrefixStore(store.get(f"go/{own}").decode(), store)


class Notices:
    """One line of text from each rank, for all ranks to read.

    Notices go through the launcher's store, over a separate connection, so they work while collectives wait and from
    any thread. If the store does not answer, notices are dropped: the launcher is gone, and collectives will fail.
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
        """The last notice of each rank; "" for a rank that has posted none."""
        try:
            return [self._store.get(key).decode() if self._store.check([key]) else "" for key in self._keys]
        except RuntimeError:
            return ["" for _ in self._keys]


def lost_rank(error: RuntimeError) -> str | None:
    """The message of a collective that failed because another rank is gone, in one line; None for any other error."""
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
    """Return rank 0's `value` on every rank. Used for clocks, which differ."""
    contribution = value if world.is_main else 0.0
    return float(sum_tensor(torch.tensor(contribution, dtype=torch.float64)).item())


def gather(value: int, world: World) -> list[int]:
    """Every rank's `value`, in the order of the ranks. The list is the same on every rank."""
    values = torch.zeros(world.world_size, dtype=torch.int64)
    values[world.rank] = value
    return list(sum_tensor(values).tolist())


def union(ids: set[int], world: World) -> set[int]:
    """The union of all ranks' ids, the same set on every rank."""
    counts = gather(len(ids), world)
    start = sum(counts[: world.rank])
    joined = torch.zeros(sum(counts), dtype=torch.int64)
    joined[start : start + len(ids)] = torch.tensor(sorted(ids), dtype=torch.int64)
    return set(sum_tensor(joined).tolist())


def first_start(world: World) -> float:
    """When the ranks first started, by `time.time()`: the same on every rank, and unchanged by torchrun's restarts."""
    now = time.time()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, _, _ = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=WATCHDOG_FIRST_S)))
        now = float(store.compare_set("first start", "", repr(now)).decode())
    return from_rank_0(now, world)


def wrap(
    net: nn.Module, world: World, *, sync_batch_norm: bool = False, static_graph: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Return (net, model). The model is the net in DistributedDataParallel, which averages gradients over ranks; with a
    world size of one it is the net. The net is the given one, or its copy with BatchNorm over all ranks.

    Gradients are views of the communication buckets, which saves memory and time for one copy of all gradients.
    `static_graph`: every step runs the same operations, so DDP need not search for unused parameters. It does not work
    with a compiled model (pytorch/pytorch issue 93672). In training each rank has its own buffers, which saves a
    broadcast per step. Validation (`broadcast_buffers`) and checkpoints use those of rank 0.

    Raises ValueError for BatchNorm over ranks on the CPU, which torch does not support.
    """
    if sync_batch_norm and world.device.type != "cuda":
        raise ValueError("model.sync_batch_norm = true needs GPUs. Set it to false")
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
    """Copy the buffers (BatchNorm statistics) of rank 0 to every rank. Rank 0 saves the same ones.

    Each rank has statistics of its own batches. Call this before validating, so all ranks score the same networks.
    """
    if dist.is_initialized():
        for net in nets:
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)


class Interrupted(BaseException):
    """A signal arrived and the run ends. The argument is the signal's name.

    It is a BaseException because it can be raised anywhere, and a compiler's `except Exception` must not catch it.
    """


class StopFlag:
    """SIGTERM or SIGINT on any rank → all ranks stop at the same step. A second SIGINT interrupts at once.

    A context manager that restores the previous handlers. Use it in the main thread. Until it is `armed`, a signal
    raises `Interrupted` immediately, for example during the compilation of the first step.
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
        # After an error the other ranks may be gone, and waiting for them would hide the error behind a timeout.
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
        """Whether to stop now, the same answer on every rank. Every rank calls this once per step.

        With several ranks the answer comes from the previous step's reduction, which had a whole step to complete. So
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
