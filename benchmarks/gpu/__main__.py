"""The command: `python -m benchmarks.gpu {check,compute,decode,train,all}`; docs/gpu.md."""

import sys
from pathlib import Path

import click

from penstock.shard_tools.terminal import Command

DATASET = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("part", type=click.Choice(["check", "compute", "decode", "train", "all"]))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default="runs/gpu", help="Folder for the results."
)
@click.option("--data", type=DATASET, metavar="DIR", help="Packed dataset for the loaders, instead of synthetic JPEGs.")
@click.option(
    "--cifar", type=DATASET, metavar="DIR", help="Packed CIFAR-10, on which the CIFAR-10 recipes train fully."
)
@click.option("--rehearse", is_flag=True, help="Run every stage at a small size on the CPU. Nothing is measured.")
@click.option(
    "--only",
    metavar="STAGE,…",
    default="",
    show_default=False,
    help="Run only these stages of the part.  [default: all]",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override a recipe setting in every stage. May be repeated.",
)
@click.option(
    "--list",
    "list_stages",
    is_flag=True,
    help="Print the stages, their time limits and the expected results, and exit.",
)
def main(
    part: str, out: Path, data: Path | None, cifar: Path | None, rehearse: bool, only: str, sets: tuple[str, ...],
    list_stages: bool,
) -> None:  # fmt: skip
    """Check and measure a GPU, in up to four parts of at most 8 minutes each.

    \b
    check     bandwidth; train.py on synthetic batches (killed and resumed, all recipes); tests/gpu
    compute   ResNet-50: precisions, torch.compile modes, comparison with a bare loop, kernels
    decode    the loader with different settings
    train     end to end, DALI's example, CIFAR-10, killed and resumed

    Each stage of a part runs in its own process. Its figures are written to PART.json in the --out folder as they are
    measured. Results of other stages from earlier runs are kept. Output goes to PART.log.

    `check` and `compute` do not need DALI. The exit status is 1 if a stage fails or gives a wrong result.
    """
    from penstock.benchmarks.gpu.registry import chosen, listed  # imported here since it needs torch, --help does not
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
