"""Make the missing shards on an engine and report progress: jobs → finished jobs with their parts in OUT."""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice

from penstock.shard_tools.shard import ShardJob, finished_part, write_shard
from penstock.shard_tools.workers import LOST, Engine, dask_engine, local_engine, num_cpus
from penstock.shards.format import shard_file


@dataclass(kw_only=True)
class PackProgress:
    """The progress of a run. It counts source images; `done` includes the finished shards of an earlier run."""

    fetched_bytes: int = 0  # bytes downloaded from a source at a URL, out of `bytes`, before the images are listed
    listed: int = 0  # images listed so far, before the totals are known
    images: int = 0
    bytes: int = 0
    shards: int = 0
    done_images: int = 0
    done_bytes: int = 0
    done_shards: int = 0
    kept_shards: int = 0
    kept_images: int = 0
    kept_bytes: int = 0
    written_bytes: int = 0  # the finished tars
    seen_bytes: int = 0  # `done_bytes` plus an estimate for unfinished shards, from the sizes of their tars


def engine_for(
    workers: int | None, scheduler: str | None, executor: Executor | None, num_shards: int
) -> AbstractContextManager[Engine]:
    workers = workers or num_cpus()
    if executor:
        return nullcontext(Engine(executor, workers, LOST, "with fewer workers", shared=True))
    return dask_engine(scheduler) if scheduler else local_engine(min(workers, num_shards))


def run_shards(
    jobs: list[ShardJob],
    engine: AbstractContextManager[Engine],
    on_bad: str,
    state: PackProgress,
    progress: Callable[[PackProgress], None],
) -> list[ShardJob]:
    """Make the missing shards; returns the finished jobs. Stops early at a bad image if `on_bad` is "fail"."""
    run = _Run(jobs, state, progress, stop_at_bad=on_bad == "fail")
    todo = [number for number in range(len(jobs)) if not run.is_finished(number)]
    state.kept_shards, state.kept_images, state.kept_bytes = state.done_shards, state.done_images, state.done_bytes
    state.seen_bytes = state.done_bytes
    progress(state)
    if todo and not run.must_stop:
        with engine as workers:
            try:
                run.work_off(iter(todo), workers)
            except workers.lost:
                progress(state)  # lets the caller stop here, if a stop signal has also killed the workers
                raise ValueError(
                    "a worker process died (out of memory?); finished shards are kept, run the same command again "
                    + workers.remedy
                ) from None
    return [jobs[number] for number in sorted(run.finished)]


@dataclass
class _Run:
    """The jobs, with the numbers of the finished ones."""

    jobs: list[ShardJob]
    state: PackProgress
    progress: Callable[[PackProgress], None]
    stop_at_bad: bool
    must_stop: bool = False
    finished: set[int] = field(default_factory=set)

    def is_finished(self, number: int) -> bool:
        """Check whether a shard is finished, and if so count it."""
        job, state = self.jobs[number], self.state
        part = finished_part(job)
        if part is None:
            return False
        self.finished.add(number)
        self.must_stop |= self.stop_at_bad and len(part.bad) > 0
        state.done_shards += 1
        state.done_images += job.count
        state.done_bytes += job.size_bytes
        state.written_bytes += part.info.bytes if part.info else 0
        return True

    def work_off(self, todo: Iterator[int], workers: Engine) -> None:
        """Make shards. Two jobs are submitted per slot, so that no worker waits for this process."""
        running: dict[Future[None], int] = {}
        try:
            while True:
                for number in islice(todo, 0 if self.must_stop else 2 * workers.slots - len(running)):
                    running[workers.executor.submit(write_shard, self.jobs[number])] = number
                if not running:
                    break
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    future.result()
                    if not self.is_finished(number):
                        path = self.jobs[number].part_path
                        raise ValueError(f"{path}: missing or changed; run the same command again")
                under_way = [self.jobs[number] for number in running.values()]
                self.state.seen_bytes = self.state.done_bytes + _unfinished_bytes(under_way, self.state)
                self.progress(self.state)
        finally:
            for future in running:
                future.cancel()
            if workers.shared:
                wait(running)


def _unfinished_bytes(jobs: list[ShardJob], state: PackProgress) -> int:
    """Estimate progress from the size of the temporary files. This needs no connection to the workers."""
    seen = 0.0
    shrinks = state.written_bytes / state.done_bytes if state.done_bytes else 1.0  # re-encoding changes sizes
    for job in jobs:
        for path in job.out.glob(f".{shard_file(job.split, job.shard)}.*.tmp"):
            with suppress(FileNotFoundError):
                seen += min(path.stat().st_size / max(shrinks, 1e-3), job.size_bytes)
    return int(seen)
