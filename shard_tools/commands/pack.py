"""The commands that make datasets: pack, demo, index. They print an error as one line and exit with 1."""

from pathlib import Path

import click

from penstock.shard_tools.commands.options import local_path, options_of, path_or_url, settings_from
from penstock.shard_tools.commands.running import one_line_errors, run, show_shards
from penstock.shard_tools.rejected import OnBad
from penstock.shard_tools.sources import SourceOptions
from penstock.shard_tools.sources.tarsamples import Fields
from penstock.shard_tools.writer import PackOptions, pack


@click.command("pack")
@click.argument("source", metavar="SOURCE|URL", type=path_or_url)
@click.argument("out", type=path_or_url)
@options_of(PackOptions)
def pack_command(source: Path | str, out: Path | str, **values: object) -> None:
    """Pack the images of SOURCE into shards in OUT.

    OUT is a directory or a URL (s3://, gs://: see docs/remote.md).

    SOURCE can be a directory with train/CLASS/IMAGE and val/CLASS/IMAGE, or just CLASS/IMAGE. It can also be a .csv
    or .tsv of paths and labels, ImageNet's official archives, Kaggle's layout or zip, Tiny-ImageNet, Parquet files or
    WebDataset tars (see docs/sharding.md), or a URL of such files (hf://, s3://, gs://: see docs/remote.md).

    Gray and colour JPEGs are checked and then copied byte for byte. Every other image becomes an RGB JPEG. EXIF
    orientation is ignored, as in PIL and torchvision; --apply-orientation applies it. --pixels stores a share of the
    images as decoded pixels, for machines with large disks and few cores.

    pack writes SPLIT-000000.tar with an .idx for DALI, SPLIT.samples.npy and SPLIT.sources.txt, and dataset.json last.
    Any WebDataset reader can read the tars. A shard is full at --samples-per-shard or --shard-size, whichever comes
    first. The images are shuffled over all shards. The same SOURCE and seed give the same bytes with any number of
    workers. If pack is interrupted or killed, run the same command again: it keeps the finished shards.

    \b
    Examples:
      python -m shard_tools pack imagenet data/imagenet --workers 16 --on-bad skip
      python -m shard_tools pack imagenet data/imagenet-256 --short-side 256 --quality 90
      python -m shard_tools pack imagenet data/imagenet-256 --short-side 256 --pixels 0.5
      python -m shard_tools pack imagenet s3://bucket/imagenet
      python -m shard_tools pack hf://datasets/ILSVRC/imagenet-1k data/imagenet
      python -m shard_tools pack photos.csv data/photos --split train=0.9,val=0.1
    """
    with one_line_errors():
        _check_encoding(values)
        options = settings_from(PackOptions, values)
    run(lambda progress: pack(source, out, options, progress=progress, say=click.echo), out)


def _check_encoding(given: dict[str, object]) -> None:
    """Raises ValueError if options contradict each other or have no effect. given: values by the fields' names."""
    if given["max_side"] and given["short_side"]:
        raise ValueError("--max-side and --short-side exclude each other; choose one")
    if given["reencode"] and given["baseline"]:
        raise ValueError("--reencode always writes baseline JPEGs; omit --baseline")
    if given["reencode"] and given["check"] == "header":
        raise ValueError("--reencode decodes every image; omit --check header")
    is_reencoded = any(given[name] for name in ("max_side", "short_side", "reencode", "baseline"))
    for name in ("quality", "subsampling"):
        if given[name] and not is_reencoded:
            raise ValueError(
                f"--{name} applies only to JPEGs that are scaled or re-encoded, and no option asks for that; "
                f"add --reencode, --max-side, --short-side or --baseline, or omit --{name}"
            )


@click.command("demo")
@click.argument("out", type=local_path)
@options_of(PackOptions, "workers")
@click.option(
    "--num-train", type=click.IntRange(min=10), default=3000, show_default=True, help="Number of training images."
)
@click.option(
    "--num-val", type=click.IntRange(min=10), default=1000, show_default=True, help="Number of validation images."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed for drawing and packing.")
def demo_command(out: Path, workers: int | None, num_train: int, num_val: int, seed: int) -> None:
    """Make a small dataset of generated images in OUT.

    The images belong to 10 classes. They are packed like any others.

    \b
    Example:
      python -m shard_tools demo data/demo
    """
    from penstock.shard_tools.demo import make_demo

    counts = {"train": num_train, "val": num_val}
    run(lambda progress: make_demo(out, counts, seed, workers, progress=progress), out)


@click.command("index")
@click.argument("directory", metavar="DIRECTORY|URL", type=path_or_url)
@click.argument("out", required=False, type=local_path)
@options_of(SourceOptions, "image_field", "label_field")
@options_of(PackOptions, "class_file", "on_bad", "workers")
def index_command(
    directory: Path | str,
    out: Path | None,
    image_field: str,
    label_field: str,
    class_file: Path | None,
    on_bad: OnBad,
    workers: int | None,
) -> None:
    """Index WebDataset tars for training, without repacking them.

    The command writes an index for each tar, and the tables. For tars in DIRECTORY, it writes them beside the tars.
    Tars at a URL (hf://, s3://, gs://: see docs/remote.md) stay there. Each is read once, and the indexes and tables
    are written to the directory OUT. Train from that directory.

    \b
    Examples:
      python -m shard_tools index data/imagenet-wds
      python -m shard_tools index hf://datasets/timm/imagenet-1k-wds data/imagenet-wds
      python -m shard_tools index data/pairs --image-field input.jpg --label-field output.cls --classes names.txt
    """
    from penstock.shard_tools.describe import describe, summary
    from penstock.shard_tools.index import index

    url = directory if isinstance(directory, str) else ""
    if url and not out:
        raise click.UsageError(f"{url}: tars at a URL need a directory for their tables; add one: index {url} OUT")
    if out and not url:
        raise click.UsageError(f"{directory}: its tables are written beside the tars; omit {out}")
    with one_line_errors():
        shard_set = index(
            out or Path(directory),
            url=url,
            on_bad=on_bad,
            class_file=class_file,
            fields=Fields(image_field, label_field),
            workers=workers,
            say=lambda line: click.echo(f"{directory}: {line}"),
            progress=show_shards,
        )
    click.echo(summary(describe(shard_set)))


COMMANDS = (pack_command, demo_command, index_command)
