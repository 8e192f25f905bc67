"""The sub-commands of `train.py` and their options. Each command imports the module that does its work when it runs.

`--help` and errors on the command line therefore need no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Literal, TypeVar

import click

from penstock.training.request import Device

T = TypeVar("T")
Weights = Literal["auto", "raw", "ema"]

CONTEXT = {"show_default": True, "max_content_width": 110}


def taking(options: Callable[..., T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """A decorator that passes a command's options to the function as one object of the class `options`."""

    def decorate(function: Callable[[T], None]) -> Callable[..., None]:
        @wraps(function)
        def called(**given: object) -> None:
            function(options(**given))

        return called

    return decorate


def existing(context: click.Context, parameter: click.Parameter, path: Path) -> Path:
    """The path of a checkpoint that exists. A missing one is reported at once, not after torch's import."""
    try:
        if path.exists():
            return path
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    raise click.ClickException(f"{path}: no such checkpoint")


def labels_there(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """`real`, or the path of a file that exists."""
    if value in (None, REAL) or Path(value).is_file():
        return value
    raise click.ClickException(f"--labels {value}: no such file; give real.json, or {REAL} for the copy in timm")


CHECKPOINT = click.argument("checkpoint", metavar="CHECKPOINT|RUN", type=click.Path(path_type=Path), callback=existing)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                      help="auto: CUDA if a GPU is available.")  # fmt: skip
WEIGHTS = click.option("--weights", type=click.Choice(["auto", "raw", "ema"]), default="auto",
                       help="raw: trained weights; ema: their moving average; auto: ema if there is one.")  # fmt: skip
MIN_OPSET = 18  # torch's ONNX exporter writes this and later versions directly; earlier ones would need a conversion
REAL = "real"  # the value of --labels that stands for timm's copy of ImageNet-ReaL
IN_ONE_PROCESS = ("predict", "export", "replay", "audit", "report")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of `train.py eval`. None stands for the value in the checkpoint's recipe. batch_size: per GPU."""

    checkpoint: Path
    data: str | None
    split: str | None
    class_map: Path | None
    only_data_classes: bool
    labels: str | None
    weights: Weights
    image_size: int | None
    resize_size: int | None
    flip: bool | None
    batch_size: int
    max_val_images: int | None
    device: Device
    as_json: bool


@click.command("eval", context_settings=CONTEXT)
@CHECKPOINT
@click.option("--data", metavar="DIR|URL", help="Packed dataset.  [default: the one that the run was trained on]")
@click.option("--split", metavar="NAME", help="Split to score.  [default: the recipe's data.val_split]")
@click.option("--class-map", type=click.Path(path_type=Path), metavar="FILE",
              help="Map the dataset's classes to the network's: lines KEY-OF-THE-NETWORK KEY-OF-THE-DATASET, or JSON.  "
                   "[default: by key]")  # fmt: skip
@click.option("--only-data-classes", is_flag=True,
              help="Score only the outputs of classes that have images in the split, as is usual for ImageNet-A and -R."
                   "  [default: all outputs]")  # fmt: skip
@click.option("--labels", metavar="real|FILE", callback=labels_there,
              help="Score with the ReaL labels of ImageNet's validation images: a path to real.json, or `real` for the "
                   "copy in timm.")  # fmt: skip
@WEIGHTS
@click.option("--image-size", type=click.IntRange(min=1), metavar="S",
              help="Size of the square crop in pixels.  [default: the recipe's val_image_size]")  # fmt: skip
@click.option("--resize-size", type=click.IntRange(min=1), metavar="S",
              help="Shorter side before the crop.  [default: in the recipe's proportion to the crop]")  # fmt: skip
@click.option("--flip/--no-flip", default=None,
              help="Average the logits of each image and its mirror image.  [default: train.val_flip]")  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=128, metavar="B", help="Images per batch on each GPU."
)
@click.option("--max-val-images", type=click.IntRange(min=1), metavar="N",
              help="Score only N images, chosen as in training.")  # fmt: skip
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
@taking(EvalOptions)
def evaluate_command(options: EvalOptions) -> None:
    """Score a trained network on every image of a split, once.

    CHECKPOINT is a .pt file. For a run directory, its best checkpoint is scored, or its last if there is no best one.
    The command also runs under torchrun.

    The dataset may have only some of the network's classes, in any order. ImageNet's class numbers and wnids are
    matched automatically.

    \b
    Examples:
      python train.py eval runs/NAME --data DIR --image-size 288
      python train.py eval runs/NAME --data DIR --labels real
    """
    if options.labels and options.only_data_classes:
        raise click.UsageError("--labels scores over all of the network's outputs; omit --only-data-classes")
    from penstock.commands.evaluate import run

    run(options)


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of `train.py predict`. flip: None for the recipe's value. threads: for decoding, 0 for one per core."""

    checkpoint: Path
    paths: tuple[Path, ...]
    top_k: int
    as_json: bool
    class_file: Path | None
    weights: Weights
    flip: bool | None
    device: Device
    batch_size: int
    threads: int


@click.command("predict", context_settings=CONTEXT)
@CHECKPOINT
@click.argument(
    "paths", metavar="IMAGE|FOLDER...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option("--top-k", type=click.IntRange(min=1), default=5, metavar="K", help="Number of classes shown per image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line instead of the table.")
@click.option("--classes", "class_file", type=click.Path(path_type=Path), metavar="FILE",
              help="File with readable class names: lines KEY NAME, or JSON.")  # fmt: skip
@WEIGHTS
@click.option("--flip/--no-flip", default=None,
              help="Average the logits of each image and its mirror image.  [default: train.val_flip]")  # fmt: skip
@DEVICE
@click.option("--batch-size", type=click.IntRange(min=1), default=64, metavar="N", help="Images per batch.")
@click.option("--threads", type=click.IntRange(min=0), default=0, metavar="N",
              help="Decode threads. 0 uses all cores.")  # fmt: skip
@taking(PredictOptions)
def predict_command(options: PredictOptions) -> None:
    """Predict the classes of image files, and of all images in folders.

    CHECKPOINT is a .pt file. For a run directory, its best checkpoint is used, or its last if there is no best one.
    Folders are searched recursively. JPEG, PNG, WebP, BMP and PPM files are supported, in colour, gray or CMYK.

    Images are resized and cropped as in the run's validation. They are also rotated by their EXIF orientation if the
    dataset was packed with --apply-orientation.

    A file that cannot be decoded is reported on stderr, and the exit status is then 1. With --json, the file also
    appears in the output, with an "error".

    \b
    Examples:
      python train.py predict runs/demo-20261124-030029 cat.jpg photos/
      python train.py predict model.pt photos/ --top-k 1 --json > classes.jsonl
    """
    from penstock.commands.predict import run

    run(options)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `train.py export`. kind: the format, None to choose it by the suffix of `out`. opset, dynamic_batch:
    for ONNX only, None if not given."""

    checkpoint: Path
    out: Path
    kind: Literal["torch", "safetensors", "onnx"] | None
    weights: Weights
    opset: int | None
    dynamic_batch: bool | None


@click.command("export", context_settings=CONTEXT)
@CHECKPOINT
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["torch", "safetensors", "onnx"]), help="Format.  [default: by OUT's suffix]"
)
@WEIGHTS
@click.option("--opset", type=click.IntRange(min=MIN_OPSET), metavar="N", help="ONNX: operator set version.")
@click.option("--dynamic-batch/--static", default=None,
              help="ONNX: accept any number of images, or exactly one.  [default: dynamic-batch]")  # fmt: skip
@taking(ExportOptions)
def export_command(options: ExportOptions) -> None:
    """Write a trained network to OUT, for use elsewhere.

    CHECKPOINT is a .pt file. For a run directory, its best checkpoint is exported, or its last if there is no best one.
    The suffix of OUT selects the format:

    \b
      .pt, .pth      a state dict with torchvision's or timm's names; OUT.json describes how to prepare images
      .safetensors   the same tensors; the metadata describe how to prepare images
      .onnx          a graph, checked against torch by onnxruntime before it is written; needs: uv sync --extra onnx

    \b
    Examples:
      python train.py export runs/demo-20261124-030029 model.safetensors
      python train.py export runs/imagenet/checkpoints/last.pt model.onnx --weights raw
    """
    from penstock.commands.export import run

    run(options)


@click.command("replay", context_settings=CONTEXT)
@click.argument("file", type=click.Path(path_type=Path), callback=existing)
@click.option("--data", metavar="DIR", help="Packed dataset, if it has moved.")
@DEVICE
def replay_command(file: Path, data: str | None, device: Device) -> None:
    """Repeat a failed step and report what went wrong first.

    FILE is the failed-step-N.pt that a run wrote when a step failed.

    \b
    Example:
      python train.py replay runs/NAME/failed-step-00001234.pt
    """
    from penstock.commands.replay import run

    run(file, data, device)


@click.command("audit", context_settings=CONTEXT)
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR|URL", help="Packed dataset, if it has moved.  [default: the run's data.path]")
def audit_command(run_dir: Path, data: str | None) -> None:
    """Prove that each epoch of RUN used every sample once.

    The proof uses the run's metrics. It also covers runs that were interrupted and resumed. The exit status is 1 if a
    step deviates from the plan.

    "quarantined" counts the samples that could not be decoded. "left over" counts the samples at the end of an epoch
    that do not fill a global batch.
    """
    from penstock.commands.audit import run

    run(run_dir, data)


@click.command("report", context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="File for the page; the picture is written beside it as .png.  [default: RUN/report.html; for "
                   "several runs comparison.html beside the first]")  # fmt: skip
def report_command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write report.png and report.html for one or more runs.

    A run need not be finished. For several runs, the command also writes one page and one picture that overlay their
    curves.
    """
    from penstock.commands.report import run

    run(runs, out)


COMMANDS = (evaluate_command, predict_command, export_command, replay_command, audit_command, report_command)
