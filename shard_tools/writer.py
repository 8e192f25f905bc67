"""Pack a source: plan the shards, run them on an executor, resume what a killed run left, write `dataset.json`.

Input: a path and what kind of source it is (see `sources`). Output: a directory as `format` describes it.

Everything is planned before the first image is read: the source is listed on disk, a keyed permutation shuffles each
split, and the sizes of the source files cut it into shards. So each shard is a pure function of its job, and the output
is byte-identical for any number of workers, on any executor, and however often the run was killed. Memory does not grow
with the number of images.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shard_tools.classes import class_infos, read_class_file
from shard_tools.duplicates import Duplicates, PartFile, find_duplicates
from shard_tools.encode import EncodeConfig
from shard_tools.execute import PackProgress, engine_for, run_shards
from shard_tools.listing import write_listing
from shard_tools.part import read_names, read_part, read_rows
from shard_tools.rejected import REJECTED_FILE, BadImages, Rejected, refusal, write_rejected
from shard_tools.resume import SOURCE_DIR, begin, complete, forget_lost, work_dir
from shard_tools.shard import LISTING_DIR, ShardJob, plan_shards
from shard_tools.sources import SourceOptions, open_source
from shard_tools.sources.base import Source
from shard_tools.subset import Subset, parts_text
from shard_tools.upload import clean, publish, staging_dir
from shards.format import (
    SAMPLE_DTYPE,
    ClassInfo,
    ShardInfo,
    ShardSet,
    write_info,
    write_split,
)
from shards.remote import is_url

SAMPLES_PER_SHARD = 10_000
SHARD_SIZE = 1 << 30
FIND_OUT, EVERYTHING, UNTOUCHED = SourceOptions(), Subset(), EncodeConfig()


@dataclass(frozen=True)
class Packed:
    """What `pack` did. `already_complete`: nothing, because OUT already held exactly this."""

    shard_set: ShardSet
    already_complete: bool = False
    progress: PackProgress = field(default_factory=PackProgress)
    rejected: Rejected = field(default_factory=Rejected)
    duplicates: Duplicates = field(default_factory=Duplicates)
    ignored: tuple[str, ...] = ()  # entries of the source that are no images: the first thousand


def pack(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    format: str = "auto",
    options: SourceOptions = FIND_OUT,
    class_file: Path | None = None,
    subset: Subset = EVERYTHING,
    encode: EncodeConfig = UNTOUCHED,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    shard_size: int = SHARD_SIZE,
    seed: int = 0,
    on_bad: str = "fail",
    workers: int | None = None,
    scheduler: str | None = None,
    executor: Executor | None = None,
    staging: Path | None = None,
    progress: Callable[[PackProgress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Packed:
    """Pack the images of `source` into shards in `out`; goes on where an interrupted call stopped.

    A shard is full at `samples_per_shard` samples or `shard_size` bytes, whichever comes first; images that have to be
    converted or re-encoded count with their size before that.

    Args:
        source: a path, read as `format` and `options` say, or a `Source`.
        out: a directory, or a URL (s3://, gs:// …).
        class_file: readable names of classes, see `classes.read_class_file`.
        seed: of the shuffle and of the choices of `subset`.
        on_bad: "fail" or "skip".
        workers, scheduler, executor: what runs the shards: so many local processes (by default one for each core), a
            Dask cluster's scheduler at this address, or this executor.
        staging: a local directory (with `scheduler`, one that its workers share) for what is on its way to a URL; by
            default in the user's cache.
        progress: called after each shard and about twice a second. say: given a line about the source.

    Raises:
        BadImages: `on_bad` is "fail" and there are some.
        ValueError: the source, the output or the settings do not allow it. Finished shards are kept.
    """
    if on_bad not in ("fail", "skip"):
        raise ValueError(f'on_bad is {on_bad!r}; it can be "fail" or "skip"')
    if min(samples_per_shard, shard_size) < 1:
        raise ValueError("samples_per_shard and shard_size must be at least 1")
    if staging and not is_url(out):
        raise ValueError(f"{out}: is no URL, so nothing is staged; leave out --staging")
    url = str(out) if is_url(out) else ""
    out, at_url = staging_dir(url, staging) if url else (Path(out).absolute(), None)
    where = str(source) if isinstance(source, str | os.PathLike) else source.format
    if isinstance(source, str | os.PathLike):
        if out.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"{out}: lies inside the source; choose a directory elsewhere")
        source = open_source(source, format, options)
    say(f"{where}: {source.explained} ({source.format})")
    with work_dir(out) as work:
        listed = work / LISTING_DIR
        listing = write_listing(
            listed,
            source,
            work / SOURCE_DIR,
            subset,
            seed,
            where,
            lambda n: progress(PackProgress(listed=n)),
            on_bad,
            class_file,
        )
        for note in (*source.notes(), *listing.notes):
            say(f"{where}: {note}")
        given = read_class_file(class_file, listing.keys) if class_file else {}
        classes = class_infos(listing.keys, source.class_names(), given, listing.numbered)
        made = {
            "source": source.format,
            "num_classes": len(classes),
            "images": listing.num_images,
            "source_bytes": listing.size_bytes,
            "fingerprint": listing.fingerprint,
            "seed": seed,
            "samples_per_shard": samples_per_shard,
            "shard_size": shard_size,
            "encode": asdict(encode),
            "subset": asdict(subset) | {"fractions": parts_text(subset), "only_classes": sorted(subset.only_classes)},
            "class_names": hashlib.sha256("\0".join(info.name for info in classes).encode()).hexdigest(),
        }
        done = complete(out, made, at_url)
        if at_url:
            clean(out)  # what a run that was killed at its very end has left
        elif done and url:
            done = publish(url, out)
        if done:
            return Packed(done, already_complete=True, ignored=tuple(source.ignored()))
        begin(out, made)
        jobs = [
            job
            for split in listing.num_images
            for job in plan_shards(out, listing, split, samples_per_shard, shard_size, seed, encode, url)
        ]
        if url:
            forget_lost(url, jobs)
        state = PackProgress(0, sum(listing.num_images.values()), sum(listing.size_bytes.values()), len(jobs))
        finished = run_shards(jobs, engine_for(workers, scheduler, executor, len(jobs)), on_bad, state, progress)
        bad = ((name, reason) for job in finished for name, reason in read_part(job.part_path).bad)
        rejected = write_rejected(out, listing.unusable, listing.rejected, bad)
        if rejected.count and on_bad == "fail":
            raise _bad_images(rejected, state, out)
        duplicates = _finish(out, list(listing.num_images), classes, jobs, made, rejected.count)
    return Packed(
        publish(url, out) if url else ShardSet.open(out), False, state, rejected, duplicates, tuple(source.ignored())
    )


def _bad_images(rejected: Rejected, state: PackProgress, out: Path) -> BadImages:
    checked = "" if state.done_images == state.images else f" among the {state.done_images} of {state.images} checked"
    remedy = "leave them out with --on-bad skip (finished shards are kept), or mend them and pack into a new directory"
    return refusal(f"{rejected.count} image(s){checked}", rejected, f" in {out / REJECTED_FILE}", remedy)


def _finish(
    out: Path, splits: list[str], classes: list[ClassInfo], jobs: list[ShardJob], made: dict[str, Any], rejected: int
) -> Duplicates:
    """Merge the parts into tables, one part in memory at a time, look for duplicates, then write `dataset.json`."""
    infos: dict[str, list[ShardInfo]] = {split: [] for split in splits}
    parts: list[PartFile] = []
    kinds: Counter[str] = Counter()
    samples: Counter[str] = Counter()
    unturned = 0
    for job in jobs:
        part = read_part(job.part_path)
        kinds.update(part.kinds)
        unturned += part.unturned
        if part.info is not None:
            parts.append(PartFile(job.part_path, job.split, samples[job.split], part.samples))
            samples[job.split] += part.samples
            infos[job.split].append(part.info)
    files: dict[str, str] = {}
    for split in splits:
        if not samples[split]:
            raise ValueError(f"{split}: none of its images can be used (see {out / REJECTED_FILE})")
        mine = [part.path for part in parts if part.split == split]
        files |= write_split(out, split, _table(mine), map(read_names, mine))
    duplicates = find_duplicates(out, parts, [info.wnid for info in classes])
    made |= {
        "converted": {kind: count for kind, count in sorted(kinds.items()) if kind != "jpeg"},
        "unturned": unturned,
        "rejected": rejected,
        "duplicates": {name: getattr(duplicates, name) for name in ("copies", "label_conflicts", "split_conflicts")},
    }
    write_info(out, classes, infos, made, files)
    return duplicates


def _table(parts: list[Path]) -> Iterator[np.ndarray]:
    """The parts' rows as SAMPLE_DTYPE, with their places among the shards."""
    for shard, path in enumerate(parts):
        rows = read_rows(path)[list(SAMPLE_DTYPE.names or ())].astype(SAMPLE_DTYPE)
        rows["shard"] = shard
        yield rows
