"""The command: `python -m benchmarks.gpu {check,compute,decode,train,all}`; docs/gpu.md."""

import sys
from pathlib import Path

import click

from penstock.shard_tools.terminal import Command

DATASET = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("part", type=click.Choice(["check", "compute", "decode", "train", "all"]))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="runs/gpu", help="Results go here.")
@click.option("--data", type=DATASET, metavar="DIR", help="What loaders read, packed, instead of made-up JPEGs.")
@click.option("--cifar", type=DATASET, metavar="DIR", help="CIFAR-10, packed: cifar10-rn18 runs on it to the end.")
@click.option("--rehearse", is_flag=True, help="Every stage in small on the CPU: nothing is measured.")
@click.option("--only", metavar="STAGE,…", default="", help="These stages of the part alone.")
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Laid over the recipe of each stage.")
@click.option("--list", "list_stages", is_flag=True, help="Print the stages, their limits and what is expected; end.")
def main(
    part: str, out: Path, data: Path | None, cifar: Path | None, rehearse: bool, only: str, sets: tuple[str, ...],
    list_stages: bool,
) -> None:  # fmt: skip
    """Measure what only a GPU can show, each stage in a process of its own, each part in 8 minutes at most.

    \b
    check     bandwidth; train.py with made-up batches: killed and resumed, all recipes; tests/gpu
    compute   ResNet-50: precisions, torch.compile's modes, a bare loop beside, kernels
    decode    the loader by setting
    train     end to end, DALI's example, CIFAR-10, killed and resumed

    OUT gets PART.json, each figure as soon as it is measured, beside what earlier calls found of other stages; and
    PART.log. `check` and `compute` need no DALI. Exit status 1 where a stage failed or is wrong.
    """
    from penstock.benchmarks.gpu.registry import chosen, listed  # here: it takes torch, which --help does without
    from penstock.benchmarks.gpu.report import BAD
    from penstock.benchmarks.gpu.run import run
    from penstock.benchmarks.gpu.stage import FULL, SMALL, Job
    from penstock.recipes import Recipe, config
    from penstock.shards.format import ShardSet

    try:
        stages = chosen(part, only)
        if list_stages:
            click.echo(listed(stages))
            return
        for folder in filter(None, (data, cifar)):
            ShardSet.open(folder)
        config.load_config(Recipe, None, sets)
        job = Job(out=out.absolute(), work=out, scale=SMALL if rehearse else FULL, rehearse=rehearse, sets=sets,
                  data=data and data.absolute(), cifar=cifar and cifar.absolute())  # fmt: skip
        results = run(stages, job)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or out}: {error.strerror or error}") from None
    sys.exit(any(result["verdict"].startswith(BAD) for result in results))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.gpu")
