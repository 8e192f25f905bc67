"""Pack a source: plan the shards, make them on an executor, resume an interrupted run, and write `dataset.json`.

Input: a path or URL and the kind of source (see `sources`). Output: a directory as `format` describes it.

Everything is planned before the first image is read: the source is listed on disk, a keyed permutation shuffles each
split, and the sizes of the source files determine where one shard ends. Each shard is a pure function of its job.
Therefore the output is byte-identical for any number of workers, any executor, and any number of interruptions. Memory
does not grow with the number of images.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from penstock.shard_tools.classes import class_infos, read_class_file
from penstock.shard_tools.duplicates import Duplicates, PartFile, find_duplicates
from penstock.shard_tools.encode import EncodeConfig
from penstock.shard_tools.execute import PackProgress, engine_for, run_shards
from penstock.shard_tools.listing import Listing, write_listing
from penstock.shard_tools.option import Option
from penstock.shard_tools.part import read_names, read_part, read_rows
from penstock.shard_tools.rejected import ON_BAD, REJECTED_FILE, OnBad, Rejected, check_on_bad, refusal, write_rejected
from penstock.shard_tools.resume import SOURCE_DIR, begin, complete, forget_lost, work_dir
from penstock.shard_tools.shard import LISTING_DIR, ShardJob, plan_shards
from penstock.shard_tools.sources import SOURCES, SourceOptions, open_source
from penstock.shard_tools.sources.base import Source
from penstock.shard_tools.sources.remote import RemoteSource
from penstock.shard_tools.subset import Subset, parts_text
from penstock.shard_tools.upload import clean, publish, staging_dir
from penstock.shards.format import SAMPLE_DTYPE, ClassInfo, Samples, ShardInfo, ShardSet, write_info, write_split
from penstock.shards.remote import is_url

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
REMEDY = "skip them with --on-bad skip (finished shards are kept), or repair them and pack into a new directory"


def parse_size(text: str) -> int:
    """Parse a size such as 256MiB, 1GB or 500000 to bytes. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    number = float(match[1]) * UNITS[(match[2] or "").lower()] if match else 0.0
    size = int(number) if number < 1 << 63 else 0
    if size < 1:
        raise ValueError(f"--shard-size: {text!r} is not a size; write e.g. 256MiB, 1GB or 500000 (bytes)")
    return size


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """The settings of `pack`.

    format, source_options: how to read the source. class_file: readable names, see `classes.read_class_file`.
    samples_per_shard, shard_size: a shard is full at this number of samples or bytes, whichever comes first. Images
        that are converted, re-encoded or stored as pixels count with their size in the source.
    workers, scheduler: make the shards in this number of local processes, or on the Dask cluster with this scheduler
        address.
    staging: a local directory for shards until they are uploaded to a URL. With `scheduler`, its workers must share it.
    """

    format: Annotated[str, Option("Kind of SOURCE.", choices=("auto", *SOURCES), shown=True)] = "auto"
    source_options: SourceOptions = field(default_factory=SourceOptions)
    class_file: Annotated[
        Path | None,
        Option("File with readable class names: lines KEY NAME, or JSON.", flag="--classes", kind=Path),
    ] = None
    subset: Subset = field(default_factory=Subset)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    on_bad: Annotated[
        OnBad,
        Option(
            "What to do with unusable images: stop, or skip them and list them in OUT/rejected.tsv.",
            choices=ON_BAD,
            shown=True,
        ),
    ] = "fail"
    samples_per_shard: Annotated[int, Option("Maximum number of samples in a shard.", least=1, shown=True)] = 10_000
    shard_size: Annotated[
        int,
        Option(
            "Maximum size of a shard, in bytes or with a unit: 256MiB, 1GB.",
            metavar="SIZE",
            kind=parse_size,
            shown="1GiB",
        ),
    ] = 1 << 30
    seed: Annotated[int, Option("Seed for the shuffle and for the choice of images.", least=0, shown=True)] = 0
    workers: Annotated[int | None, Option("Number of worker processes.  [default: one for each CPU core]", least=1)] = (
        None
    )
    scheduler: Annotated[
        str | None, Option("Pack on the Dask cluster with this scheduler address instead of in local processes.")
    ] = None
    staging: Annotated[
        Path | None,
        Option(
            "If OUT is a URL: local directory for shards until they are uploaded.  "
            "[default: in $XDG_CACHE_HOME/penstock, ~/.cache/penstock]",
            kind=Path,
        ),
    ] = None

    def __post_init__(self) -> None:
        check_on_bad(self.on_bad)
        if min(self.samples_per_shard, self.shard_size) < 1:
            raise ValueError("samples_per_shard and shard_size must be at least 1")
        if self.workers and self.scheduler:
            raise ValueError(
                "--workers and --scheduler exclude each other; choose one (a Dask cluster has its workers)"
            )


USUAL = PackOptions()


@dataclass(frozen=True)
class Packed:
    """The result of `pack`. `already_complete`: OUT already held exactly this dataset, so nothing was done."""

    shard_set: ShardSet
    already_complete: bool = False
    progress: PackProgress = field(default_factory=PackProgress)
    rejected: Rejected = field(default_factory=Rejected)
    duplicates: Duplicates = field(default_factory=Duplicates)
    ignored: tuple[str, ...] = ()  # the first thousand entries of the source that are not images


class Target(NamedTuple):
    """The destination of the shards. local: the directory in which they are made. at_url: the complete dataset at the
    URL, if there is one."""

    local: Path
    url: str = ""
    at_url: ShardSet | None = None


def pack(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    options: PackOptions = USUAL,
    *,
    executor: Executor | None = None,
    progress: Callable[[PackProgress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Packed:
    """Pack the images of `source` into shards in `out`; resumes an interrupted call.

    Args:
        source: a path, a URL, or a `Source`.
        out: a directory, or a URL (s3://, gs:// …).
        executor: makes the shards, instead of the workers in `options`.
        progress: called after each shard and about twice a second. say: called with each message about the source.

    Raises:
        BadImages: `on_bad` is "fail" and there are bad images.
        ValueError: the source, the output or the settings are not usable. Finished shards are kept.
    """
    target = _target(out, options.staging)
    where = str(source) if isinstance(source, str | os.PathLike) else source.format
    source = _opened(source, target.local, options)
    say(f"{where}: {source.explained} ({source.format})")
    with work_dir(target.local) as work:
        if isinstance(source, RemoteSource):
            source.fetch(work / SOURCE_DIR, lambda done, total: progress(PackProgress(fetched_bytes=done, bytes=total)))
        listing = write_listing(
            work / LISTING_DIR,
            source,
            work / SOURCE_DIR,
            options.subset,
            options.seed,
            where,
            lambda n: progress(PackProgress(listed=n)),
            options.on_bad,
            options.class_file,
        )
        for note in (*source.notes(), *listing.notes):
            say(f"{where}: {note}")
        given = read_class_file(options.class_file, listing.keys) if options.class_file else {}
        classes = class_infos(listing.keys, source.class_names(), given, listing.numbered)
        made = _made(source, listing, classes, options)
        if done := _complete(target, made):
            return Packed(done, already_complete=True, ignored=tuple(source.ignored))
        begin(target.local, made)
        jobs = _plan(target, listing, options)
        images, size = sum(listing.num_images.values()), sum(listing.size_bytes.values())
        state = PackProgress(images=images, bytes=size, shards=len(jobs))
        engine = engine_for(options.workers, options.scheduler, executor, len(jobs))
        finished = run_shards(jobs, engine, options.on_bad, state, progress)
        rejected = _rejected(target.local, listing, finished, state, options.on_bad)
        duplicates = _finish(target.local, list(listing.num_images), classes, jobs, made, rejected.count)
    shard_set = publish(target.url, target.local) if target.url else ShardSet.open(target.local)
    return Packed(shard_set, False, state, rejected, duplicates, tuple(source.ignored))


def _target(out: str | os.PathLike[str], staging: Path | None) -> Target:
    if is_url(out):
        local, at_url = staging_dir(str(out), staging)
        return Target(local, str(out), at_url)
    if staging:
        raise ValueError(f"{out}: is not a URL, so nothing is staged; omit --staging")
    return Target(Path(out).absolute())


def _opened(source: str | os.PathLike[str] | Source, local: Path, options: PackOptions) -> Source:
    if not isinstance(source, str | os.PathLike):
        return source
    if not is_url(source) and local.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{local}: is inside the source; choose a directory elsewhere")
    return open_source(source, options.format, options.source_options)


def _made(source: Source, listing: Listing, classes: list[ClassInfo], options: PackOptions) -> dict[str, object]:
    """How the dataset is made, for `dataset.json`. A run that resumes it must match this."""
    subset = options.subset
    return {
        "source": source.format,
        "num_classes": len(classes),
        "images": listing.num_images,
        "source_bytes": listing.size_bytes,
        "fingerprint": listing.fingerprint,
        "seed": options.seed,
        "samples_per_shard": options.samples_per_shard,
        "shard_size": options.shard_size,
        "encode": asdict(options.encode),
        "subset": asdict(subset) | {"fractions": parts_text(subset), "only_classes": sorted(subset.only_classes)},
        "class_names": hashlib.sha256("\0".join(info.name for info in classes).encode()).hexdigest(),
    }


def _complete(target: Target, made: dict[str, object]) -> ShardSet | None:
    """The dataset, if it is already complete. If only its upload is missing, upload it."""
    done = complete(target.local, made, target.at_url)
    if target.at_url:
        clean(target.local)  # remove the files of a run that was killed at its very end
    elif done and target.url:
        return publish(target.url, target.local)
    return done


def _plan(target: Target, listing: Listing, options: PackOptions) -> list[ShardJob]:
    """Plan all shards of all splits."""
    samples, size = options.samples_per_shard, options.shard_size
    jobs = [
        job
        for split in listing.num_images
        for job in plan_shards(target.local, listing, split, samples, size, options.seed, options.encode, target.url)
    ]
    if target.url:
        forget_lost(target.url, jobs)
    return jobs


def _rejected(out: Path, listing: Listing, finished: list[ShardJob], state: PackProgress, on_bad: str) -> Rejected:
    """Write OUT/rejected.tsv. Raises BadImages if there are bad images and `on_bad` is "fail"."""
    bad = ((name, reason) for job in finished for name, reason in read_part(job.part_path).bad)
    rejected = write_rejected(out, bad, listing.unusable, listing.rejected)
    if rejected.count and on_bad == "fail":
        all_seen = state.done_images == state.images
        checked = "" if all_seen else f" among the {state.done_images} of {state.images} checked"
        what, more = f"{rejected.count} image(s){checked}", f" in {out / REJECTED_FILE}"
        raise refusal(what, rejected, more, REMEDY)
    return rejected


def _finish(
    out: Path, splits: list[str], classes: list[ClassInfo], jobs: list[ShardJob], made: dict[str, object], rejected: int
) -> Duplicates:
    """Merge the parts into tables, one part in memory at a time, find duplicates, and write `dataset.json`."""
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
    made = made | {
        "converted": {kind: count for kind, count in sorted(kinds.items()) if kind != "jpeg"},
        "unturned": unturned,
        "rejected": rejected,
        "duplicates": {name: getattr(duplicates, name) for name in ("copies", "label_conflicts", "split_conflicts")},
    }
    write_info(out, classes, infos, made, files)
    return duplicates


def _table(parts: list[Path]) -> Iterator[Samples]:
    """The parts' rows as SAMPLE_DTYPE, with their shard numbers."""
    for shard, path in enumerate(parts):
        rows = read_rows(path)[list(SAMPLE_DTYPE.names or ())].astype(SAMPLE_DTYPE)
        rows["shard"] = shard
        yield rows
