"""Two processes that sum over gloo, compared with one process."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from penstock.benchmarks.explain import stages
from penstock.benchmarks.options import BenchSetup
from penstock.recipes import Recipe
from penstock.shards.format import ShardSet
from penstock.training import distributed
from penstock.training.distributed import StopFlag
from penstock.training.step_log import StepLog


def exchange(rank: int, port: int, folder: str) -> None:
    """One of two processes: sum gradients of 7 M parameters with the other, and record the rate and the sum."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    world, sum_tensor = distributed.start("cpu"), distributed.sum_tensor
    summed: list[int] = []

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        summed.append(len(tensor) if tensor.dim() else 0)
        return sum_tensor(tensor)

    distributed.sum_tensor = watched
    setup = BenchSetup(Recipe(), cast(ShardSet, None), world, 8, {})
    sample = stages.communication(setup, 7_000_000).run(0.2)
    distributed.finish()
    (Path(folder) / str(rank)).write_text(json.dumps([sample.images_per_s, summed]))


def test_communication_sums_all_gradients_in_buckets(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    mp.spawn(exchange, (port, str(tmp_path)), nprocs=2)
    for rank in "01":
        images_per_s, summed = json.loads((tmp_path / rank).read_text())
        buckets = [size for size in summed if size]
        assert buckets[:2] == [25 * 2**20 // 4, 7_000_000 - 25 * 2**20 // 4]
        steps = len(buckets) // 2
        assert buckets == buckets[:2] * steps
        assert 0 < images_per_s < 8 * steps / 0.1, "a step is 8 images of a rank"


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
