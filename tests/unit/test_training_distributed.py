"""A world of one in this process, and a world of two gloo processes against the single-process result."""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from training import distributed, environment
from training.distributed import Interrupted, StopFlag, World
from training.step_log import StepLog

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_world_of_one_has_no_process_group() -> None:
    world = distributed.start("cpu")
    assert world == World(0, 0, 1, 1, torch.device("cpu"))
    assert world.is_main
    assert not torch.distributed.is_initialized()
    model, tensor = nn.Linear(2, 2), torch.ones(2)
    assert distributed.wrap(model, world) == (model, model)
    with pytest.raises(ValueError, match="sync_batch_norm needs GPUs"):
        distributed.wrap(model, world, sync_batch_norm=True)
    assert distributed.from_rank_0(2.5, world) == 2.5
    assert distributed.sum_tensor(tensor) is tensor
    assert tensor.tolist() == [1, 1]
    assert distributed.union({3, 1}, world) == {1, 3}
    assert distributed.union(set(), world) == set()
    distributed.barrier()
    distributed.broadcast_buffers([model])
    distributed.finish()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="device cuda: torch sees no GPU"):
        distributed.start("cuda")
    assert distributed.start("auto").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("driver", "for_torch", "for_dali", "told"),
    [
        ((12, 4), "13.0", "nvidia-dali-cuda130", "driver is for CUDA 12.4, torch for 13 and DALI for 13: "),
        ((12, 4), "13.0", "nvidia-dali-cuda120", "driver is for CUDA 12.4, torch for 13: "),
        ((12, 2), "12.8", "nvidia-dali-cuda130", "driver is for CUDA 12.2, DALI for 13: "),
        ((12, 2), "12.8", "nvidia-dali-cuda120", ""),  # within a major version
        ((13, 0), "13.2", "nvidia-dali-cuda120", ""),
        ((13, 0), None, "", ""),
        (None, "13.0", "nvidia-dali-cuda130", ""),
    ],
)
def test_a_driver_that_is_too_old_is_told(
    driver: tuple[int, int] | None, for_torch: str | None, for_dali: str, told: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(environment, "driver_cuda", lambda: driver)
    monkeypatch.setattr(environment, "_version", lambda package: "2.4.0" if package == for_dali else None)
    monkeypatch.setattr(torch.version, "cuda", for_torch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    distributed.start("cpu")
    assert capsys.readouterr().err == ""
    distributed.start("auto")
    printed = capsys.readouterr().err
    assert (told in printed) if told else (printed == "")
    assert printed.count("\n") == bool(told)


def test_the_drivers_version_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuda.h has it: 1000 × major + 10 × minor."""

    class Driver:
        def cuDriverGetVersion(self, version: Any) -> int:
            version._obj.value = 12080
            return 0

    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: Driver())
    assert environment.driver_cuda() == (12, 8)
    monkeypatch.undo()
    assert environment.driver_cuda() is None or torch.cuda.is_available()


def test_unknown_device_is_an_error() -> None:
    with pytest.raises(ValueError, match="'tpu': expected auto, cpu or cuda"):
        distributed.start("tpu")  # type: ignore[arg-type]


def test_more_processes_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 processes on this machine, but 2 GPUs"):
        distributed.start("cuda")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopFlag() as stop:
        stop.armed = True
        assert not stop.agreed()
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.agreed()
        assert stop.signal == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_raises_but_not_the_echo_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopFlag() as stop:
        stop.armed = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"
        monkeypatch.setattr(StopFlag, "SAME_INTERRUPT_S", 0.01)
        time.sleep(0.02)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_before_the_first_step_a_signal_ends_the_run_at_once() -> None:
    with StopFlag(), pytest.raises(Interrupted, match="SIGTERM"):
        signal.raise_signal(signal.SIGTERM)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _two_ranks(rank: int, port: int, out: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    world = distributed.start("cpu", timeout_s=60)
    assert (world.rank, world.world_size, world.is_main) == (rank, 2, rank == 0)
    result: dict = {"sum": distributed.sum_tensor(torch.tensor([rank + 1, 10]))}
    result["union"] = sorted(distributed.union({7, 2**40} if rank == 0 else {7, 0, 5}, world))

    result["from_rank_0"] = distributed.from_rank_0(rank + 0.5, world)

    _, model = distributed.wrap(_network(), world, static_graph=True)
    images, labels = torch.load(out / "batch.pt", weights_only=True)
    half = slice(4 * rank, 4 * rank + 4)
    loss = nn.functional.cross_entropy(model(images[half]), labels[half])
    loss.backward()
    result["grads"] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    log = StepLog(2, device=world.device, world_size=2, sum_over_ranks=distributed.sum_tensor)
    log.restart(global_batch_size=8, epoch_digest=0)
    log.add(step=0, epoch=0, position=0, loss=loss, lr=0.1)
    log.close()
    result["loss"] = log.take()[0]["loss"]

    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.full((2,), float(rank))
    distributed.broadcast_buffers([norm])
    result["buffer"] = norm.running_mean

    with StopFlag() as stop:
        stop.armed = True
        for step in range(1000):
            if rank == 1 and step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.agreed():
                break
        result |= {"stopped_at": step, "signal": stop.signal}
    distributed.barrier()
    torch.save(result, out / f"{rank}.pt")
    distributed.finish()


def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    images, labels = torch.randn(8, 6), torch.randint(3, (8,))
    torch.save((images, labels), tmp_path / "batch.pt")
    mp.spawn(_two_ranks, args=(port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))

    model = _network()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    for result in (first, second):
        assert result["from_rank_0"] == 0.5
        assert result["sum"].tolist() == [3, 20]
        assert result["union"] == [0, 5, 7, 2**40]
        torch.testing.assert_close(result["grads"], [p.grad for p in model.parameters()])
        assert result["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert result["buffer"].tolist() == [0.0, 0.0]
        # The flag set before the call at step 5 is what that call sends; the next one answers it.
        assert result["stopped_at"] == 6
    assert (first["signal"], second["signal"]) == (None, "SIGTERM")


@pytest.mark.parametrize(("given", "expected"), [(None, "32"), ("4", "4")])
def test_each_stream_gets_a_hardware_queue_unless_the_user_says_how_many(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    """Before CUDA starts, which reads it then."""
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", given or "")
    if not given:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    seen: list[str | None] = []

    def choose(*_: object) -> torch.device:
        seen.append(os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"))
        return torch.device("cpu")

    monkeypatch.setattr(distributed, "_choose_device", choose)
    distributed.start()
    assert seen == [expected]
