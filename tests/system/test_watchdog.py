"""The watchdog on a clock, with ranks played by threads that share a store."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from penstock.training import watchdog
from penstock.training.distributed import Notices, World, _fresh_store, lost_rank
from penstock.training.watchdog import Watchdog

TIMEOUT_S = 0.5


def world(rank: int = 0, world_size: int = 1, notices: Notices | None = None) -> World:
    return World(rank, rank, world_size, world_size, torch.device("cpu"), notices)


class Ended:
    """Notes the lines that a watchdog would have ended its process with."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.came = threading.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.came.set()


def test_a_run_that_moves_is_left_alone() -> None:
    ended = Ended()
    with Watchdog(world(), 4 * TIMEOUT_S, ended) as watch:
        for step in range(30):
            watch.begin("training", step)
            time.sleep(TIMEOUT_S / 5)
    assert ended.lines == []


def test_a_run_that_hangs_ends_in_bounded_time_and_says_where() -> None:
    ended, began = Ended(), time.monotonic()
    with Watchdog(world(rank=3), TIMEOUT_S, ended) as watch:
        watch.begin("training", 123)
        watch.begin("checkpoint")
        assert ended.came.wait(10)
        took_s = time.monotonic() - began
    assert TIMEOUT_S <= took_s < 2 * TIMEOUT_S + 2
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith("rank 3: no progress for ")
    assert ended.lines[0].endswith(" in step 123: checkpoint")


def test_the_clock_runs_from_the_start() -> None:
    ended = Ended()
    with Watchdog(world(), TIMEOUT_S, ended):
        assert ended.came.wait(10)
    assert "step 0: starting" in ended.lines[0]


def test_a_wait_for_data_is_a_stage_of_its_own() -> None:
    ended, go = Ended(), threading.Event()

    def batches() -> Iterator[str]:
        yield "first"
        go.wait(10)

    seen = []
    with Watchdog(world(), TIMEOUT_S, ended) as watch:
        watch.begin("training", 7)
        for batch in watch.each(batches(), "training"):
            seen.append((batch, watch._mark.stage))
            ended.came.wait(0.01)
            watchdog_waits = threading.Thread(target=lambda: (ended.came.wait(10), go.set()))
            watchdog_waits.start()
        watchdog_waits.join()
    assert seen == [("first", "training")]
    assert ended.lines[0].endswith("in step 7: training, waiting for data")


def test_who_waits_for_data_that_come_does_not_hang() -> None:
    ended, received = Ended(), 0

    with Watchdog(world(), TIMEOUT_S, ended, received=lambda: received) as watch:
        watch.begin("training, waiting for data", 0)
        for _ in range(30):
            received += 1
            time.sleep(TIMEOUT_S / 10)
        assert ended.lines == []
        assert ended.came.wait(10)  # now that none come
        assert ended.lines[0].endswith("in step 0: training, waiting for data")
        ended.came.clear()


def test_data_that_come_do_not_excuse_other_stages() -> None:
    ended = Ended()
    with Watchdog(world(), TIMEOUT_S, ended, received=time.perf_counter_ns) as watch:
        watch.begin("checkpoint", 0)
        assert ended.came.wait(10)


@pytest.fixture
def compiling_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """How much longer compiling may take, here."""
    monkeypatch.setattr(watchdog, "COMPILING_S", 4 * TIMEOUT_S)
    return 4 * TIMEOUT_S


def test_compiling_may_take_longer_but_not_forever(compiling_s: float) -> None:
    ended, stages = Ended(), []
    with Watchdog(world(), TIMEOUT_S, ended) as watch:
        for number, _ in enumerate(watch.each(range(3), "training", compiling=1)):
            stages.append(watch._mark.stage)
            if number == 0:
                time.sleep(compiling_s)
                assert ended.lines == []
        watch._in(stages[0])
        assert ended.came.wait(10)
    assert stages == ["training, compiling", "training", "training"]
    assert ended.lines[0].endswith(": training, compiling")


# Ranks played by threads, each with a connection of its own to one store.


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def watchdogs(store: dist.Store, world_size: int) -> tuple[list[Watchdog], list[Ended]]:
    ended = [Ended() for _ in range(world_size)]
    notices = [Notices(store, rank, world_size) for rank in range(world_size)]
    dogs = [Watchdog(world(rank, world_size, notices[rank]), TIMEOUT_S, ended[rank]) for rank in range(world_size)]
    return dogs, ended


def test_ranks_wait_for_one_whose_data_come(store: dist.TCPStore) -> None:
    dogs, ended = watchdogs(store, 2)
    slow, count = dogs[1], itertools.count()
    slow._received = lambda: next(count)
    dogs[0].begin("training, waiting for data", 0)
    dogs[0].begin("training", 0)
    slow.begin("training, waiting for data", 0)
    with dogs[0], slow:
        time.sleep(4 * TIMEOUT_S)
        assert ended[0].lines == ended[1].lines == []
        slow._received = lambda: 0
        assert ended[0].came.wait(10)
    assert "it waits for rank 1, which hangs in step 0: training, waiting for data" in ended[0].lines[0]


def test_ranks_wait_for_one_that_compiles(store: dist.TCPStore, compiling_s: float) -> None:
    dogs, ended = watchdogs(store, 2)
    for dog in dogs:
        dog._in("training, compiling")
    dogs[0]._in("training")
    with dogs[0], dogs[1]:
        assert not ended[0].came.wait(compiling_s)
        assert ended[1].came.wait(10)
        dogs[1]._over.set()  # it ends, and is silent then
        dogs[1]._thread.join()
        assert ended[0].came.wait(10)
    assert ended[1].lines[0].endswith(": training, compiling")
    assert "rank 1" in ended[0].lines[0]


def test_a_validation_with_more_batches_on_one_rank_leaves_both_as_far(store: dist.TCPStore) -> None:
    """Rank 0 has one more batch to score, twice; then it hangs, in training and in its last batch."""
    for place in ("training", "validation"):
        dogs, ended = watchdogs(store, 2)
        for rank, dog in enumerate(dogs):
            for step in (10, 20):
                dog.begin("validation", step)
                for _ in dog.each(range(3 - rank), "validation"):
                    pass
            if place == "training":
                dog.begin("training", 21)
            else:
                dog.begin("validation", 21)
                batches = dog.each(range(3), "validation")
                for _ in range(3 - rank):
                    next(batches)
                if rank == 1:
                    dog.begin("validation, waiting for other ranks")
        if place == "training":
            dogs[1].begin("checkpoint", 21)
        with dogs[0], dogs[1]:
            assert ended[1].came.wait(10)
            assert f"it waits for rank 0, which hangs in step 21: {place}" in ended[1].lines[0]
            assert ended[0].came.wait(10)
            assert "rank 1" not in ended[0].lines[0]


def test_a_rank_that_waits_names_the_one_that_hangs(store: dist.TCPStore) -> None:
    dogs, ended = watchdogs(store, 3)
    for rank, dog in enumerate(dogs):
        dog.begin("training, waiting for data", 41)
        if rank != 1:
            dog.begin("training", 41)
    with dogs[0], dogs[1], dogs[2]:
        assert all(e.came.wait(10) for e in ended)
    assert "it waits for rank 1, which hangs in step 41: training, waiting for data" in ended[0].lines[0]
    assert "rank 1, which hangs" in ended[2].lines[0]
    assert ended[1].lines[0].endswith("in step 41: training, waiting for data")


def test_a_rank_that_is_stopped_is_told_from_one_that_hangs(store: dist.TCPStore) -> None:
    dogs, ended = watchdogs(store, 2)
    dogs[1].begin("training", 8)
    dogs[1]._post()  # its last sign of life
    dogs[0].begin("training", 8)
    dogs[0].begin("training", 9)
    with dogs[0]:
        assert ended[0].came.wait(10)
    assert "rank 1 is silent (stopped, or its machine is gone), last seen in step 8: training" in ended[0].lines[0]


def test_a_rank_that_never_came(store: dist.TCPStore) -> None:
    dogs, ended = watchdogs(store, 2)
    with dogs[0]:
        assert ended[0].came.wait(10)
    assert ended[0].lines[0].endswith("; rank 1 has not started")


def test_a_store_that_is_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def clone(self) -> "Gone":
            return self

        def set_timeout(self, timeout: object) -> None: ...

        def __getattr__(self, name: str) -> object:
            raise dist.DistNetworkError("Broken pipe")

    notices = Notices(Gone(), 0, 2)  # type: ignore[arg-type]
    ended = Ended()
    with Watchdog(world(0, 2, notices), TIMEOUT_S, ended):
        assert ended.came.wait(10)
    assert "the launcher's store does not answer" in ended.lines[0]


def test_a_restart_finds_nothing_of_the_start_before(store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun has it: one store over all restarts, on another number of ranks too."""
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store.clone(), 0, 0)]))

    def start(rank: int, world_size: int, late_s: float, found: list[dist.Store | None]) -> None:
        time.sleep(late_s)
        found[rank] = _fresh_store(rank, world_size, 20)

    for attempt, (world_size, late_rank) in enumerate([(3, 0), (3, 2), (2, 1), (3, 0), (3, 1)]):
        found: list[dist.Store | None] = [None] * world_size
        args = [(rank, world_size, 0.7 * (rank == late_rank), found) for rank in range(world_size)]
        ranks = [threading.Thread(target=start, args=a) for a in args]
        for thread in ranks:
            thread.start()
        for thread in ranks:
            thread.join(20)
        stores = [s for s in found if s is not None]
        assert len(stores) == world_size
        assert not any(s.check(["address"]) for s in stores), "left from the attempt before"
        stores[-1].set("address", str(attempt))
        assert all(s.get("address") == str(attempt).encode() for s in stores)


GLOO = (
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:63723. "
    "This is typically caused by a remote worker crashing. Check the logs of the remote worker."
)


def test_what_a_lost_rank_is() -> None:
    assert lost_rank(RuntimeError(GLOO)) == "Connection closed by peer [127.0.0.1]:63723"
    assert lost_rank(dist.DistBackendError("NCCL error: remote process exited\nand more")) == (
        "NCCL error: remote process exited"
    )
    assert lost_rank(RuntimeError("shape '[2]' is invalid")) is None
