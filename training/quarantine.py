"""`RUN/quarantine.jsonl`: the samples a run has taken out, one JSON object a line, read again when it resumes."""

import json
from pathlib import Path
from typing import Any

QUARANTINE_FILE = "quarantine.jsonl"


def append(run_dir: Path, fields: dict[str, Any]) -> None:
    """Add one sample; `fields` has `sample_id` and `epoch`. One write, so that ranks can share the file."""
    with (run_dir / QUARANTINE_FILE).open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(json.dumps(fields) + "\n")


def read(run_dir: Path, before_epoch: int | None = None) -> set[int]:
    """The sample ids taken out so far, or before an epoch. Raises ValueError naming the line that is not one.

    A resume inside an epoch meets that epoch's bad samples again, where the undisturbed run met them.
    """
    path = run_dir / QUARANTINE_FILE
    if not path.is_file():
        return set()
    sample_ids = set()
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            fields = json.loads(line)
            if before_epoch is None or int(fields["epoch"]) < before_epoch:
                sample_ids.add(int(fields["sample_id"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise ValueError(f"{path}, line {number}: not a sample; delete the line") from None
    return sample_ids
