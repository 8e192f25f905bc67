"""The command: `python -m benchmarks.gpu {check,compute,decode,train,all}`; docs/gpu.md."""

import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click

from benchmarks.gpu.expected import is_bad
from benchmarks.gpu.registry import PARTS, STAGES
from benchmarks.gpu.report import write_json
from benchmarks.gpu.run import PART_LIMIT_S, described, earlier, preload, run_part
from benchmarks.gpu.stage import FULL, SMALL, Job, Stage
from benchmarks.gpu.table import summary, table
from recipes import Recipe
from shard_tools.format import ShardSet
from shard_tools.terminal import Command
from training import config

DATASET = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("part", type=click.Choice([*PARTS, "all"]))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="runs/gpu", help="Results go here.")
@click.option("--data", type=DATASET, metavar="DIR", help="What loaders read, packed, instead of made-up JPEGs.")
@click.option("--cifar", type=DATASET, metavar="DIR", help="CIFAR-10, packed: cifar10-rn18 runs on it to the end.")
@click.option("--rehearse", is_flag=True, help="Every stage in small on the CPU: nothing is measured.")
@click.option("--only", metavar="STAGE,…", default="", help="These stages of the part alone.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Laid over a stage's recipe, but where train.py runs.",
)
@click.option("--list", "list_stages", is_flag=True, help="Print the stages, their limits and what is expected; end.")
def main(
    part: str, out: Path, data: Path | None, cifar: Path | None, rehearse: bool, only: str, sets: tuple[str, ...],
    list_stages: bool,
) -> None:  # fmt: skip
    """Measure what only a GPU can show, each stage in a process of its own, each part in 8 minutes at most.

    \b
    check     versions, BatchNorm, bandwidth; train.py with made-up batches: killed, resumed, all recipes; tests/gpu
    compute   ResNet-50: precisions, torch.compile's modes, a bare loop beside, kernels, synchronisations
    decode    the JPEG decoders: which runs, whether it is right, images/s by setting
    train     end to end, DALI's example beside, CIFAR-10, killed and resumed

    OUT gets PART.json with all of a part's results, one file a stage, PART.log and summary.json, each as soon as a
    stage ends; what earlier calls found of other stages stays there. `check` and `compute` need no DALI. Exit status
    1 where a stage failed or is wrong.
    """
    try:
        stages = chosen(part, only)
        if list_stages:
            click.echo(listed(stages))
            return
        for folder in filter(None, (data, cifar)):
            ShardSet.open(folder)
        config.load_config(Recipe, None, sets)
        results = run(stages, out, data, cifar, rehearse, sets)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or out}: {error.strerror or error}") from None
    click.echo(f"\n{table(results)}")
    sys.exit(any(is_bad(result["verdict"]) for result in results))


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


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.gpu")
