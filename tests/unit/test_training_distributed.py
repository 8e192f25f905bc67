"""A world of one rank in this process, signals, and the messages about devices and drivers."""

import os
import signal
import time
from typing import Any

import pytest
import torch
from torch import nn

from penstock.training import distributed, environment
from penstock.training.distributed import Interrupted, StopFlag, World

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
    with pytest.raises(ValueError, match="sync_batch_norm = true needs GPUs"):
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
        (
            (12, 4),
            "13.0",
            "nvidia-dali-cuda130",
            "12.4, but torch needs CUDA 13 and DALI needs CUDA 13. ",
        ),
        ((12, 4), "13.0", "nvidia-dali-cuda120", "driver supports CUDA 12.4, but torch needs CUDA 13. "),
        ((12, 2), "12.8", "nvidia-dali-cuda130", "driver supports CUDA 12.2, but DALI needs CUDA 13. "),
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
    with pytest.raises(ValueError, match="4 processes on this machine, but only 2 GPUs"):
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


@pytest.mark.parametrize(("given", "expected"), [(None, "32"), ("4", "4")])
def test_each_stream_gets_a_hardware_queue_unless_the_user_says_how_many(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    """Set before CUDA starts, since CUDA reads it then."""
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
