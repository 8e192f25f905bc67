"""Run the shards that are missing on an engine, and say how far it is: jobs → finished jobs, whose parts lie in OUT."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice

from shard_tools.part import Part
from shard_tools.shard import ShardJob, finished_part, write_shard
from shard_tools.workers import LOST, Engine, dask_engine, local_engine, num_cpus
from shards.format import shard_file


@dataclass
class PackProgress:
    """How far a run is. Counts are of source images; `done` includes what an earlier run had finished."""

    listed: int = 0  # images, before anything else is known
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
    seen_bytes: int = 0  # `done_bytes` and an estimate of what is under way, from the unfinished tars' sizes


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
    """Make the shards that are missing; returns those that are finished. Stops early at bad images that may not be."""
    finished: set[int] = set()
    any_bad = False

    def finish(number: int, part: Part) -> None:
        nonlocal any_bad
        finished.add(number)
        any_bad |= bool(part.bad)
        state.done_shards += 1
        state.done_images += jobs[number].count
        state.done_bytes += jobs[number].size_bytes
        state.written_bytes += part.info.bytes if part.info else 0

    todo = []
    for number, job in enumerate(jobs):
        part = finished_part(job)
        if part is None:
            todo.append(number)
        else:
            finish(number, part)
    state.kept_shards, state.kept_images, state.kept_bytes = state.done_shards, state.done_images, state.done_bytes
    state.seen_bytes = state.done_bytes
    progress(state)
    if not todo or (any_bad and on_bad == "fail"):
        return [jobs[number] for number in sorted(finished)]
    queue = iter(todo)
    running: dict[Future[None], int] = {}
    with engine as workers:
        try:
            while True:
                stop = on_bad == "fail" and any_bad
                for number in islice(queue, 0 if stop else 2 * workers.slots - len(running)):
                    running[workers.executor.submit(write_shard, jobs[number])] = number
                if not running:
                    break
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    future.result()
                    part = finished_part(jobs[number])
                    if part is None:
                        raise ValueError(f"{jobs[number].part_path}: vanished or changed; run the same command again")
                    finish(number, part)
                state.seen_bytes = state.done_bytes + _unfinished_bytes([jobs[n] for n in running.values()], state)
                progress(state)
        except workers.lost:
            progress(state)  # lets the caller stop here, if the workers died of the signal that told it to
            raise ValueError(
                "a worker process died (out of memory?); finished shards are kept: run the same command again, "
                + workers.remedy
            ) from None
        finally:
            for future in running:
                future.cancel()
            if workers.shared:
                wait(running)
    return [jobs[number] for number in sorted(finished)]


def _unfinished_bytes(jobs: list[ShardJob], state: PackProgress) -> int:
    """A look at the temporary files, so that progress needs no channel to the workers, wherever they run."""
    seen = 0.0
    shrinks = state.written_bytes / state.done_bytes if state.done_bytes else 1.0  # where images are re-encoded
    for job in jobs:
        for path in job.out.glob(f".{shard_file(job.split, job.shard)}.*.tmp"):
            with suppress(FileNotFoundError):
                seen += min(path.stat().st_size / max(shrinks, 1e-3), job.size_bytes)
    return int(seen)
