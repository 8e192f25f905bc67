"""The stages that are asked for, run part by part: what the command does once its options are read."""

import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu.registry import PARTS, STAGES
from benchmarks.gpu.report import write_json
from benchmarks.gpu.run import PART_LIMIT_S, described, earlier, preload, run_part
from benchmarks.gpu.stage import FULL, SMALL, Job, Stage
from benchmarks.gpu.table import summary


def chosen(part: str, only: str) -> list[Stage]:
    """The stages of a part, or those that --only names. Raises ValueError for a name that there is not."""
    stages = [stage for stage in STAGES if part in ("all", stage.part)]
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in {stage.name for stage in stages}:
            raise ValueError(f"--only {name}: no such stage; {part} has {', '.join(stage.name for stage in stages)}")
    return [stage for stage in stages if not names or stage.name in names]


def listed(stages: list[Stage]) -> str:
    width = max(len(f"{stage.part} {stage.name}") for stage in stages)
    lines = [f"{f'{stage.part} {stage.name}':<{width}}  {stage.limit_s:>4.0f} s  {stage.expected}" for stage in stages]
    return "\n".join([*lines, f"A part takes {PART_LIMIT_S:.0f} s at most: what comes later is not run then."])


def run(
    stages: list[Stage], out: Path, data: Path | None, cifar: Path | None, rehearse: bool, sets: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """The results of stages, part by part. Raises ValueError where there is no GPU and this is no rehearsal."""
    signal.signal(signal.SIGTERM, _ended)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="penstock-gpu-") as folder:
        job = Job(out=out.absolute(), work=Path(folder), scale=SMALL if rehearse else FULL, rehearse=rehearse,
                  on_gpu=not rehearse, data=data and data.absolute(), cifar=cifar and cifar.absolute(),
                  sets=sets)  # fmt: skip
        for name in PARTS:
            earlier(job, name)  # before any work
        env = described(job)
        if env["bad_fork"]:
            job = replace(job, start_method="spawn")
            env = described(job)
        if not env["cuda_available"] and not rehearse:
            raise ValueError("torch sees no GPU here; --rehearse runs every stage in small on the CPU")
        preload(with_dali=rehearse)
        job = replace(job, env=env)
        results: list[dict[str, Any]] = []
        for part in dict.fromkeys(stage.part for stage in stages):
            order = [stage.name for stage in STAGES if stage.part == part]
            results += run_part(part, [stage for stage in stages if stage.part == part], job, order=order)
            write_json(out / "summary.json", summary([one for name in PARTS for one in earlier(job, name).values()]))
        return results


def _ended(number: int, frame: FrameType | None) -> None:
    """SIGTERM: leave by the way that ends the stage under way."""
    sys.exit(128 + number)
