"""`RUN/quarantine.jsonl`: the samples that a run has quarantined, one JSON object per line. A resume reads them."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from penstock.pipeline.holes import BadSample

QUARANTINE_FILE = "quarantine.jsonl"


def append(run_dir: Path, bad: BadSample) -> None:
    """Add one sample, in a single write, so that ranks can share the file."""
    with (run_dir / QUARANTINE_FILE).open("a", encoding="utf-8", errors="surrogateescape") as file:
        before = "\n" if _is_cut(run_dir) else ""
        file.write(f"{before}{json.dumps(asdict(bad))}\n")


def _is_cut(run_dir: Path) -> bool:
    """Whether the last line is incomplete, for example after a full disk or a power cut."""
    with (run_dir / QUARANTINE_FILE).open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


class Record(NamedTuple):
    """One line. position: where in its epoch the sample was found; -1 if the line has no position."""

    sample_id: int
    epoch: int
    position: int


def records(run_dir: Path) -> list[Record]:
    """All lines in their order, except truncated ones: the run finds and records their samples again.

    Raises ValueError that names the first line without a sample.
    """
    path = run_dir / QUARANTINE_FILE
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.startswith(b"{") and not line.endswith(b"}"):
            continue
        try:
            fields = json.loads(line)
            found.append(Record(int(fields["sample_id"]), int(fields["epoch"]), int(fields.get("position", -1))))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise ValueError(f"{path}, line {number}: not a quarantined sample. Delete the line") from None
    return found


def read(run_dir: Path, before_epoch: int | None = None) -> set[int]:
    """The sample ids quarantined so far, or before an epoch. Raises what `records` does.

    A resume inside an epoch finds that epoch's bad samples again, at the same positions as an uninterrupted run.
    """
    return {record.sample_id for record in records(run_dir) if before_epoch is None or record.epoch < before_epoch}
