"""The commands that make datasets: pack, demo, index. Input: the command line; errors are one line, exit 1."""

import re
from pathlib import Path
from typing import Any

import click

from shard_tools.commands.running import LocalPath, PathOrUrl, run
from shard_tools.encode import CHECKS, MAX_PIXELS, SUBSAMPLINGS, EncodeConfig
from shard_tools.sources import SOURCES, SourceOptions
from shard_tools.sources.tarsamples import Fields
from shard_tools.subset import Subset, parse_fractions
from shard_tools.writer import SAMPLES_PER_SHARD, pack

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Size(click.ParamType):
    """A number of bytes with an optional unit: 256MiB, 1GB, 500000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", str(value), re.IGNORECASE)
        number = float(match[1]) * UNITS[(match[2] or "").lower()] if match else 0.0
        size = int(number) if number < 1 << 63 else 0
        if size < 1:
            self.fail(f"{value!r} is not a size; write e.g. 256MiB, 1GB or 500000 (bytes)", param, ctx)
        return size


WORKERS = click.option(
    "--workers", type=click.IntRange(min=1), help="Worker processes.  [default: one for each CPU core]"
)
ON_BAD = click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do about unusable images: stop, or leave them out and list them in OUT/rejected.tsv.",
)
CLASSES = click.option(
    "--classes", type=click.Path(path_type=Path), help="Readable names of classes: lines KEY NAME, or JSON."
)
IMAGE_FIELD = click.option(
    "--image-field", default="", metavar="EXT", help="webdataset: which member is the image, e.g. input.jpg."
)
LABEL_FIELD = click.option(
    "--label-field",
    default="",
    metavar="EXT",
    help="webdataset: which member is the label, e.g. output.cls; json.KEY for a key of a .json.",
)
POSITIVE = click.IntRange(min=1)


@click.command("pack")
@click.argument("source", type=LocalPath())
@click.argument("out", type=PathOrUrl())
@click.option("--format", type=click.Choice(["auto", *SOURCES]), default="auto", show_default=True)
@click.option(
    "--image-column", default="", help="csv, parquet: the column of the paths or images (csv: or its number)."
)
@click.option("--label-column", default="", help="csv, parquet: the column of the classes.")
@click.option("--split-column", default="", help="csv: the column of the splits.")
@IMAGE_FIELD
@LABEL_FIELD
@click.option(
    "--split-dirs",
    default="",
    metavar="SPLIT=DIR,…",
    help='imagefolder: the directories of the splits, "train=Training_Set,val=Val"; none: all are classes.',
)
@CLASSES
@click.option("--split", default="", help="Split a source that has one split: train=0.8,val=0.1,test=0.1.")
@click.option("--per-class", type=POSITIVE, help="At most so many images of each class in each split.")
@click.option("--limit", type=POSITIVE, help="At most so many images in each split.")
@click.option("--only-classes", default="", help="Class keys A,B,… or a file with a class key a line.")
@click.option("--check", type=click.Choice(CHECKS), default="decode", show_default=True, help="How JPEGs are checked.")
@click.option("--max-side", type=POSITIVE, help="Scale images down to this longer side, in pixels.")
@click.option("--short-side", type=POSITIVE, help="Scale images down to this shorter side.")
@click.option("--reencode", is_flag=True, help="Write every image anew at its size.")
@click.option("--baseline", is_flag=True, help="Write progressive JPEGs anew, as hardware decoders want them.")
@click.option("--apply-orientation", is_flag=True, help="Turn images as their EXIF orientation says.")
@click.option("--quality", type=click.IntRange(1, 100), help="Of JPEGs written anew.  [default: 90]")
@click.option("--subsampling", type=click.Choice(SUBSAMPLINGS), help="Of JPEGs written anew.  [default: 420]")
@click.option("--max-pixels", type=POSITIVE, default=MAX_PIXELS, show_default=True, help="More make an image bad.")
@ON_BAD
@click.option("--samples-per-shard", type=POSITIVE, default=SAMPLES_PER_SHARD, show_default=True)
@click.option(
    "--shard-size", type=Size(), default="1GiB", show_default=True, help="Bytes, or with a unit: 256MiB, 1GB."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the shuffle and the choices."
)
@WORKERS
@click.option("--scheduler", help="Address of a Dask scheduler whose workers pack, instead of local processes.")
@click.option(
    "--staging",
    type=click.Path(path_type=Path),
    help="Where OUT is a URL: a directory for what is on its way.  "
    "[default: in $XDG_CACHE_HOME/penstock, ~/.cache/penstock]",
)
def pack_command(
    source: Path,
    out: Path | str,
    classes: Path | None,
    split: str,
    per_class: int | None,
    limit: int | None,
    only_classes: str,
    image_column: str,
    label_column: str,
    split_column: str,
    split_dirs: str,
    image_field: str,
    label_field: str,
    workers: int | None,
    scheduler: str | None,
    **settings: Any,
) -> None:
    """Pack the images of SOURCE into shards in OUT, a directory or a URL (s3://, gs://: docs/remote.md).

    SOURCE is a directory with train/CLASS/IMAGE and val/CLASS/IMAGE, or just CLASS/IMAGE; a .csv or .tsv of paths and
    labels; ImageNet's official archives, Kaggle's layout or zip, Tiny-ImageNet, Parquet files, WebDataset tars: see
    docs/sharding.md. Gray and colour JPEGs are copied untouched once they are seen to decode; anything else becomes an
    RGB JPEG. EXIF orientation is not applied, as in PIL and torchvision, but with --apply-orientation.

    OUT gets SPLIT-000000.tar with an .idx for DALI, SPLIT.samples.npy, SPLIT.sources.txt, and dataset.json when all
    is done. Any WebDataset reader reads the tars. A shard is full at --samples-per-shard or --shard-size, whichever
    comes first. The images are shuffled over all shards; the same SOURCE and seed give the same bytes whatever the
    number of workers. If it is interrupted or killed, run the same command again: finished shards are kept.

    \b
    Examples:
      python -m shard_tools pack imagenet data/imagenet --workers 16 --on-bad skip
      python -m shard_tools pack imagenet data/imagenet-256 --short-side 256 --quality 90
      python -m shard_tools pack imagenet s3://bucket/imagenet
      python -m shard_tools pack photos.csv data/photos --split train=0.9,val=0.1
    """
    try:
        if workers and scheduler:
            raise ValueError("--workers and --scheduler: choose one; a Dask cluster has its own workers")
        encode = encoding({name: settings.pop(name) for name in ENCODING})
        options = SourceOptions(
            image_column=image_column,
            label_column=label_column,
            split_column=split_column,
            split_dirs=split_dirs,
            image_field=image_field,
            label_field=label_field,
        )
        subset = Subset(
            fractions=parse_fractions(split) if split else (),
            per_class=per_class,
            limit=limit,
            only_classes=_class_keys(only_classes),
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    run(
        lambda progress: pack(
            source,
            out,
            options=options,
            subset=subset,
            encode=encode,
            progress=progress,
            say=click.echo,
            workers=workers,
            scheduler=scheduler,
            class_file=classes,
            **settings,
        ),
        out,
    )


ENCODING = (
    "check",
    "max_side",
    "short_side",
    "quality",
    "subsampling",
    "reencode",
    "baseline",
    "apply_orientation",
    "max_pixels",
)


def encoding(settings: dict[str, Any]) -> EncodeConfig:
    """`EncodeConfig` from options. Raises ValueError where they do not go together."""
    if settings["max_side"] and settings["short_side"]:
        raise ValueError("--max-side and --short-side: choose one")
    if settings["reencode"] and settings["baseline"]:
        raise ValueError("--reencode writes baseline JPEGs anyway: leave out --baseline")
    if settings["reencode"] and settings["check"] == "header":
        raise ValueError("--reencode decodes every image: leave out --check header")
    anew = settings["max_side"] or settings["short_side"] or settings["reencode"] or settings["baseline"]
    for name in ("quality", "subsampling"):
        if settings[name] and not anew:
            raise ValueError(
                f"--{name} is of JPEGs that are scaled or re-encoded, and none is: add --reencode, --max-side, "
                "--short-side or --baseline, or leave it out"
            )
    return EncodeConfig(**{name: value for name, value in settings.items() if value is not None})


def _class_keys(text: str) -> frozenset[str]:
    """`A,B`, or the lines of a file; of `WNID NAME`, as in ImageNet's lists, the wnid."""
    path = Path(text)
    if not text or not path.is_file():
        return frozenset(key.strip() for key in text.split(",") if key.strip())
    lines = map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())
    keys = frozenset(re.sub(r"^(n[0-9]{8})\s.*", r"\1", line) for line in lines if line)
    if not keys:
        raise ValueError(f"{path}: --only-classes needs a class key a line, and it has none")
    return keys


@click.command("demo")
@click.argument("out", type=LocalPath())
@WORKERS
@click.option("--num-train", type=click.IntRange(min=10), default=3000, show_default=True, help="Training images.")
@click.option("--num-val", type=click.IntRange(min=10), default=1000, show_default=True, help="Validation images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def demo_command(out: Path, workers: int | None, num_train: int, num_val: int, seed: int) -> None:
    """Make a small image set in OUT: 10 classes of generated pictures, packed as by `pack`.

    \b
    Example:
      python -m shard_tools demo data/demo
    """
    from shard_tools.demo import make_demo

    counts = {"train": num_train, "val": num_val}
    run(lambda progress: make_demo(out, counts, seed, workers, progress=progress), out)


@click.command("index")
@click.argument("directory", type=LocalPath())
@IMAGE_FIELD
@LABEL_FIELD
@CLASSES
@ON_BAD
@WORKERS
def index_command(
    directory: Path, image_field: str, label_field: str, classes: Path | None, on_bad: str, workers: int | None
) -> None:
    """Make the WebDataset tars in DIRECTORY trainable as they are: index and tables are written beside them.

    \b
    Examples:
      python -m shard_tools index data/imagenet-wds
      python -m shard_tools index data/pairs --image-field input.jpg --label-field output.cls --classes names.txt
    """
    from shard_tools.describe import describe, summary
    from shard_tools.index import index

    try:
        shard_set = index(
            directory,
            on_bad=on_bad,
            class_file=classes,
            fields=Fields(image_field, label_field),
            workers=workers,
            say=lambda line: click.echo(f"{directory}: {line}"),
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(summary(describe(shard_set)))


COMMANDS = (pack_command, demo_command, index_command)
