"""Index existing WebDataset tars: leave the shards unchanged and write the files that training needs beside them.

Input: a directory with *.tar, or the URL of one (`remote_tars`); remote tars stay there. Output, beside the tars or in
a separate directory: .idx files as DALI's wds2idx writes them, sample tables, source names and dataset.json (see
`format`). Its `made` contains {"indexed": true, "image_extensions": […], …}. `sources.webdataset` defines how samples,
labels and splits are recognised. Only the header of an ordinary JPEG is checked; `verify --decode` checks the rest.
Images that DALI may decode differently from Pillow are decoded by both (`trainable`).
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from penstock.shard_tools.classes import class_infos, gap_lines, keys_with_file, read_class_file
from penstock.shard_tools.rejected import REJECTED_FILE, check_on_bad, refusal, write_rejected
from penstock.shard_tools.remote_tars import WORK, scan_at, tars_at
from penstock.shard_tools.scan import Scanned, scan_shard
from penstock.shard_tools.sources.tarsamples import FIND_OUT, NO_LABEL, Fields, check_fields
from penstock.shard_tools.sources.webdataset import LabelsMet, names_beside, tars, unlabelled_test
from penstock.shard_tools.workers import LOST, num_cpus, process_pool
from penstock.shards.format import (
    DAMAGED,
    INFO_FILE,
    SAMPLE_DTYPE,
    ClassInfo,
    Samples,
    ShardInfo,
    ShardSet,
    escape,
    inside,
    write_info,
    write_split,
)
from penstock.shards.program import SHARD_TOOLS

REMEDY = "skip them with --on-bad skip, or pack the directory, which converts what it can"


def index(
    directory: Path,
    *,
    url: str = "",
    on_bad: str = "fail",
    class_file: Path | None = None,
    fields: Fields = FIND_OUT,
    workers: int | None = None,
    executor: Executor | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, shards: None,
) -> ShardSet:
    """Write the files that training needs to `directory`, for the tars in it or for those at `url`. Running it again
    gives the same files.

    `on_bad`: "fail", or "skip" to leave unusable images out of the tables and list them in rejected.tsv. `class_file`:
    readable class names, see `classes.read_class_file`. `executor` scans the shards; without one, `workers` processes
    do. `say` is called with each message about labels and classes, `progress` with the numbers of finished and of all
    shards.

    Raises:
        BadImages: `on_bad` is "fail" and there are bad images.
        ValueError: these are not shards, or files cannot be read or written.
    """
    check_on_bad(on_bad)
    directory = Path(directory)
    try:
        splits = tars_at(url, directory) if url else _find_tars(directory)
        paths = [path for split in splits.values() for path in split]
        scan = partial(scan_at, url=url, fields=fields, first=paths[0]) if url else partial(scan_shard, fields=fields)
        if not url:
            check_fields(paths[0], fields)
        with nullcontext(executor) if executor else process_pool(min(workers or num_cpus(), len(paths))) as pool:
            scans = _watched(pool.map(scan, paths), len(paths), progress)
            shard_set = _write(directory, url, splits, scans, on_bad, class_file, fields, say)
        shutil.rmtree(directory / WORK, ignore_errors=True)
        return shard_set
    except LOST:
        raise ValueError(
            f"{directory}: a worker process died (out of memory?); try again with fewer --workers"
        ) from None
    except OSError as error:
        raise ValueError(f"{error.filename or directory}: {error.strerror}; the shards are unchanged") from None


def _find_tars(directory: Path) -> dict[str, list[Path]]:
    """Split → its tars. Raises ValueError if they cannot be indexed in this directory."""
    try:
        splits = tars(directory)
    except OSError as error:
        raise ValueError(f"{directory}: cannot be read ({error.strerror})") from None
    paths = [path for split in splits.values() for path in split]
    if not paths:
        raise ValueError(f"{directory}: has no .tar files; give a directory of WebDataset shards")
    if below := [path for path in paths if path.parent != directory]:
        name = below[0].relative_to(directory)
        raise ValueError(
            f"{directory}: {len(below)} of its {len(paths)} tars are in subdirectories (first {name}), but index reads "
            f"a single directory; move them up (as {'-'.join(name.parts)}), or use pack, which reads them there"
        )
    if (directory / INFO_FILE).exists() and not _is_indexed(directory):
        raise ValueError(
            f"{directory}: is a packed dataset and already has an index; check it with: {SHARD_TOOLS} verify DIRECTORY"
        )
    return splits


def _is_indexed(directory: Path) -> bool:
    try:
        return bool(json.loads(inside(directory, INFO_FILE).read_bytes())["made"]["indexed"])
    except DAMAGED:
        return False


def _watched(scans: Iterator[Scanned], total: int, progress: Callable[[int, int], None]) -> Iterator[Scanned]:
    for done, scanned in enumerate(scans, 1):
        progress(done, total)
        yield scanned


def _write(
    directory: Path,
    url: str,
    splits: dict[str, list[Path]],
    scans: Iterator[Scanned],
    on_bad: str,
    class_file: Path | None,
    fields: Fields,
    say: Callable[[str], None],
) -> ShardSet:
    """Merge the scans into tables, then write dataset.json."""
    met = LabelsMet(names_beside(directory))
    texts: dict[str, int] = {}  # class → number as met
    with ExitStack() as stack:
        merged = {split: _Split(stack.enter_context(TemporaryFile("w+b"))) for split in splits}
        for split, paths in splits.items():
            for _ in paths:
                merged[split].add(next(scans), directory, met, texts)
        if unlabelled := _unlabelled(merged):
            say(unlabelled)
            merged.pop("test")
        rejected = write_rejected(directory, (row for part in merged.values() for row in part.bad))
        if rejected.count and on_bad == "fail":
            raise refusal(f"{rejected.count} image(s)", rejected, f" in {directory / REJECTED_FILE}", REMEDY)
        tables = {split: np.concatenate([np.empty(0, SAMPLE_DTYPE), *part.rows]) for split, part in merged.items()}
        for split, table in tables.items():
            if not len(table):
                raise ValueError(f"{directory}: none of the images of {split} can be used (see {REJECTED_FILE})")
        classes = _classes(tables, met, texts, class_file, say)
        files: dict[str, str] = {}
        for split, part in merged.items():
            part.sources.seek(0)
            files |= write_split(directory, split, tables[split], part.sources)
    made = _made(list(merged.values()), rejected.count, fields)
    write_info(directory, classes, {split: part.infos for split, part in merged.items()}, made, files, url)
    return ShardSet.open(directory)


def _made(parts: list["_Split"], rejected: int, fields: Fields) -> dict[str, object]:
    """How the dataset is made, for dataset.json."""
    return {
        "indexed": True,
        "image_extensions": sorted(set[str]().union(*(part.extensions for part in parts))),
        "kinds": dict(sorted(sum((part.kinds for part in parts), Counter[str]()).items())),
        "unturned": sum(part.unturned for part in parts),
        "rejected": rejected,
        "ignored": sum(part.ignored for part in parts),
    } | {f"{name}_field": value for name, value in asdict(fields).items() if value}


@dataclass
class _Split:
    """The merged scans of one split's shards. sources: a file of the samples' names, one per line."""

    sources: IO[bytes]
    rows: list[Samples] = field(default_factory=list)
    infos: list[ShardInfo] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    extensions: set[str] = field(default_factory=set)
    bad: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    unturned: int = 0

    def add(self, scanned: Scanned, directory: Path, met: LabelsMet, texts: dict[str, int]) -> None:
        """Add a shard. Text labels become the numbers in `texts`: the order in which the labels first appeared."""
        rows = scanned.rows
        for text in scanned.texts:
            met.add(text, f"{directory}/{scanned.worded}")
            texts.setdefault(text, len(texts))
        if scanned.numbered:
            met.add(scanned.highest, f"{directory}/{scanned.numbered}")
        elif len(rows):
            rows["label"] = np.array([texts[text] for text in scanned.texts])[rows["label"]]
        met.names.join(scanned.class_names)
        rows["shard"] = len(self.infos)
        self.rows.append(rows)
        self.infos.append(scanned.info)
        self.kinds += scanned.kinds
        self.extensions |= scanned.extensions
        self.bad += scanned.bad
        self.ignored += len(scanned.ignored)
        self.unturned += scanned.unturned
        self.sources.writelines(f"{escape(name)}\n".encode("utf-8", "surrogateescape") for name in scanned.names)


def _unlabelled(merged: dict[str, _Split]) -> str:
    """A message, if there are other splits besides test and no image of test has a label."""
    if "test" not in merged or len(merged) == 1:
        return ""
    test = merged["test"]
    secret = test.bad and not any(map(len, test.rows)) and all(reason.startswith(NO_LABEL) for _, reason in test.bad)
    return unlabelled_test(len(test.bad)) if secret else ""


def _classes(
    tables: dict[str, Samples],
    met: LabelsMet,
    texts: dict[str, int],
    class_file: Path | None,
    say: Callable[[str], None],
) -> list[ClassInfo]:
    """The classes by label. Also sets the labels in the tables, and reports notes to `say`."""
    keys = _keys(tables, met, texts, class_file)
    given = read_class_file(class_file, keys) if class_file else {}
    counts: dict[str, NDArray[np.int64]] = {
        split: np.bincount(table["label"], minlength=len(keys)) for split, table in tables.items()
    }
    for line in (*met.notes(), *gap_lines(keys, counts)):
        say(line)
    return class_infos(keys, met.class_names(), given, numbered=not texts)


def _keys(tables: dict[str, Samples], met: LabelsMet, texts: dict[str, int], class_file: Path | None) -> list[str]:
    """The class keys by label. Text labels become positions in the sorted texts; numbers stay as they are."""
    numbered = met.keys()
    if numbered is not None:
        return keys_with_file(numbered, class_file)
    keys = sorted(texts)
    position = np.empty(len(keys), np.int32)
    position[[texts[key] for key in keys]] = np.arange(len(keys))
    for table in tables.values():
        table["label"] = position[table["label"]]
    return keys
