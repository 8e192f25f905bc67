"""Pack a source: plan the shards, run them on an executor, resume what a killed run left, write `dataset.json`.

Input: a directory of images (see `sources`). Output: a directory as `format` describes it.

Everything is planned before the first image is read: a global shuffle per split, cut into shards by the sizes of the
source files. So each shard is a pure function of its job, and the output is byte-identical for any number of workers
and however often the run was killed.
"""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shard_tools.encode import MAX_PIXELS
from shard_tools.format import (
    SAMPLE_DTYPE,
    ShardInfo,
    ShardSet,
    atomic_write,
    escape,
    shard_file,
    write_info,
    write_split,
)
from shard_tools.resume import complete, describe, work_dir
from shard_tools.shard import Part, ShardJob, iterate_parts, plan_shards, read_part, write_shard
from shard_tools.sources.imagefolder import Source, read_source
from shard_tools.workers import LOST, num_cpus, process_pool

REJECTED_FILE = "rejected.tsv"
SAMPLES_PER_SHARD = 10_000
SHARD_SIZE = 1 << 30


@dataclass
class Progress:
    """How far a run is. Counts are of source images; `done` includes what an earlier run had finished."""

    images: int = 0
    bytes: int = 0
    shards: int = 0
    done_images: int = 0
    done_bytes: int = 0
    done_shards: int = 0
    kept_shards: int = 0
    kept_images: int = 0
    kept_bytes: int = 0
    seen_bytes: int = 0  # `done_bytes` and an estimate of what is under way, from the unfinished tars' sizes


@dataclass(frozen=True)
class Packed:
    """What `pack` did. `already_complete`: nothing, because OUT already held exactly this."""

    shard_set: ShardSet
    already_complete: bool = False
    progress: Progress = field(default_factory=Progress)
    rejected: list[list[str]] = field(default_factory=list)  # name, reason
    ignored_line: str = ""


class BadImages(ValueError):
    """Some images cannot be used and `on_bad` is "fail"."""


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    shard_size: int = SHARD_SIZE,
    seed: int = 0,
    on_bad: str = "fail",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Packed:
    """Pack the images of `source` into shards in `out`; goes on where an interrupted call stopped.

    A shard is full at `samples_per_shard` samples or `shard_size` bytes, whichever comes first; images that have to be
    converted count with their size before conversion. `on_bad`: "fail" or "skip". `executor` runs the shards; without
    one, `workers` processes do. `progress` is called after each shard and about twice a second.

    Raises:
        BadImages: `on_bad` is "fail" and there are some.
        ValueError: the source, the output or the settings do not allow it. Finished shards are kept.
    """
    if on_bad not in ("fail", "skip"):
        raise ValueError(f'on_bad is {on_bad!r}; it can be "fail" or "skip"')
    if min(samples_per_shard, shard_size, max_pixels) < 1:
        raise ValueError("samples_per_shard, shard_size and max_pixels must be at least 1")
    out = Path(out)
    images = read_source(source)
    if out.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{out}: lies inside the source; choose a directory elsewhere")
    made = describe(images, samples_per_shard, shard_size, seed, max_pixels)
    done = complete(out, made)
    if done:
        return Packed(done, already_complete=True, ignored_line=images.ignored_line)
    with work_dir(out, made):
        jobs = {
            split: plan_shards(out, split, files, samples_per_shard, shard_size, seed, max_pixels)
            for split, files in images.splits.items()
        }
        flat = [job for split in jobs.values() for job in split]
        state = Progress(len([i for job in flat for i in job.images]), sum(job.size_bytes for job in flat), len(flat))
        rejected = _run(flat, workers, executor, on_bad, state, progress)
        _write_rejected(out, rejected)
        if rejected and on_bad == "fail":
            raise _bad_images(rejected, state, out)
        _finish(out, images, jobs, made, len(rejected))
    return Packed(ShardSet.open(out), progress=state, rejected=rejected, ignored_line=images.ignored_line)


def _run(
    jobs: list[ShardJob],
    workers: int | None,
    executor: Executor | None,
    on_bad: str,
    state: Progress,
    progress: Callable[[Progress], None],
) -> list[list[str]]:
    """Make the shards that are missing; returns the bad images in order. Stops early if they are not to be skipped."""
    bad: dict[int, list[list[str]]] = {}

    def finished(number: int, part: Part) -> None:
        bad[number] = part.bad
        state.done_shards += 1
        state.done_images += len(jobs[number].images)
        state.done_bytes += jobs[number].size_bytes

    todo = []
    for number, job in enumerate(jobs):
        part = read_part(job)
        if part is None:
            todo.append(number)
        else:
            finished(number, part)
    state.kept_shards, state.kept_images, state.kept_bytes = state.done_shards, state.done_images, state.done_bytes
    state.seen_bytes = state.done_bytes
    progress(state)
    num_workers = workers or num_cpus()
    queue = iter(todo)
    running: dict[Future[None], int] = {}
    with nullcontext(executor) if executor else process_pool(min(num_workers, max(1, len(todo)))) as pool:
        try:
            while True:
                stop = on_bad == "fail" and any(bad.values())
                for number in islice(queue, 0 if stop else 2 * num_workers - len(running)):
                    running[pool.submit(write_shard, jobs[number])] = number
                if not running:
                    break
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    future.result()
                    finished(number, next(iterate_parts([jobs[number]])))
                state.seen_bytes = state.done_bytes + _unfinished_bytes([jobs[number] for number in running.values()])
                progress(state)
        except LOST:
            progress(state)  # lets the caller stop here, if the workers died of the signal that told it to
            raise ValueError(
                "a worker process died (out of memory?); finished shards are kept: run the same command again, "
                "with fewer --workers"
            ) from None
        finally:
            for future in running if executor else ():  # our own pool drops everything by itself
                future.cancel()
    return [row for number in sorted(bad) for row in bad[number]]


def _unfinished_bytes(jobs: list[ShardJob]) -> int:
    """A look at the temporary files, so that progress needs no channel to the workers, wherever they run."""
    seen = 0
    for job in jobs:
        for path in job.out.glob(f".{shard_file(job.split, job.shard)}.*.tmp"):
            with suppress(FileNotFoundError):
                seen += min(path.stat().st_size, job.size_bytes)
    return seen


def _bad_images(rejected: list[list[str]], state: Progress, out: Path) -> BadImages:
    lines = [f"{escape(name)}: {reason}" for name, reason in rejected[:10]]
    if len(rejected) > len(lines):
        lines.append(f"… {len(rejected) - len(lines)} more in {out / REJECTED_FILE}")
    checked = "" if state.done_images == state.images else f" among the {state.done_images} of {state.images} checked"
    return BadImages(
        f"{len(rejected)} image(s){checked} cannot be used:\n  "
        + "\n  ".join(lines)
        + "\nleave them out with --on-bad skip (finished shards are kept), or mend them and pack into a new directory"
    )


def _write_rejected(out: Path, rejected: list[list[str]]) -> None:
    if not rejected:
        (out / REJECTED_FILE).unlink(missing_ok=True)
        return
    with atomic_write(out / REJECTED_FILE) as stream:
        for name, reason in [["name", "reason"], *rejected]:
            line = "\t".join(escape(field).replace("\t", "\\t") for field in (name, reason)) + "\n"
            stream.write(line.encode("utf-8", "surrogateescape"))


def _finish(out: Path, source: Source, jobs: dict[str, list[ShardJob]], made: dict[str, Any], rejected: int) -> None:
    """Merge the parts into tables, then write `dataset.json`."""
    infos: dict[str, list[ShardInfo]] = {}
    kinds: Counter[str] = Counter()
    files: dict[str, str] = {}
    for split, split_jobs in jobs.items():
        infos[split] = []
        tables = []
        for part in iterate_parts(split_jobs):
            kinds.update(part.kinds)
            if part.info is None:
                continue
            tables.append(part.samples)
            tables[-1]["shard"] = len(infos[split])
            infos[split].append(part.info)
        if not tables:
            raise ValueError(f"{split}: none of its images can be used (see {out / REJECTED_FILE})")
        names = (name for part in iterate_parts(split_jobs) for name in part.sources)
        files |= write_split(out, split, np.concatenate(tables).astype(SAMPLE_DTYPE, copy=False), names)
    converted = {kind: count for kind, count in sorted(kinds.items()) if kind != "jpeg"}
    write_info(out, source.classes, infos, made | {"converted": converted, "rejected": rejected}, files)
