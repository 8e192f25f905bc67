"""The sub-commands of `train.py`: their options. What they do is in the modules that they name, imported when one runs.

So `--help`, and what is wrong on a command line, take no torch.
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
    """A decorator: the function gets what its command was given as one object of the class `options`."""

    def decorate(function: Callable[[T], None]) -> Callable[..., None]:
        @wraps(function)
        def called(**given: object) -> None:
            function(options(**given))

        return called

    return decorate


def existing(context: click.Context, parameter: click.Parameter, path: Path) -> Path:
    """A checkpoint's path that is there: told now, not after torch's import."""
    try:
        if path.exists():
            return path
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    raise click.ClickException(f"{path}: no such checkpoint")


def labels_there(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """`real`, or a file that is there."""
    if value in (None, REAL) or Path(value).is_file():
        return value
    raise click.ClickException(f"--labels {value}: no such file; give real.json, or {REAL} for the copy in timm")


CHECKPOINT = click.argument("checkpoint", metavar="CHECKPOINT|RUN", type=click.Path(path_type=Path), callback=existing)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                      help="auto: CUDA if it is there.")  # fmt: skip
WEIGHTS = click.option("--weights", type=click.Choice(["auto", "raw", "ema"]), default="auto",
                       help="auto: EMA if there is one.")  # fmt: skip
MIN_OPSET = 18  # torch's ONNX exporter writes this and later ones itself; to earlier ones it would have to convert
REAL = "real"  # of --labels: ImageNet-ReaL's
IN_ONE_PROCESS = ("predict", "export", "replay", "audit", "report")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Of `train.py eval`; None for what the checkpoint's recipe says. batch_size: images a GPU takes at once."""

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
@click.option("--data", metavar="DIR|URL", help="Packed dataset; by default the one that the run was trained on.")
@click.option("--split", metavar="NAME", help="[default: the recipe's data.val_split]")
@click.option("--class-map", type=click.Path(path_type=Path), metavar="FILE",
              help="Which class is which: lines KEY-OF-THE-NETWORK KEY-OF-THE-DATASET, or JSON.  [default: by key]",
              )  # fmt: skip
@click.option("--only-data-classes", is_flag=True,
              help="Over the outputs for the classes that the split has images of, as ImageNet-A and -R are scored.  "
                   "[default: over all]")  # fmt: skip
@click.option("--labels", metavar="real|FILE", callback=labels_there,
              help="ReaL labels of ImageNet's validation images: its real.json, or the copy in timm.")  # fmt: skip
@WEIGHTS
@click.option("--image-size", type=click.IntRange(min=1), metavar="S", help="[default: the recipe's val_image_size]")
@click.option("--resize-size", type=click.IntRange(min=1), metavar="S", help="[default: in the recipe's proportion]")
@click.option("--flip/--no-flip", default=None, help="Mean with the mirror image's. [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, metavar="B", help="Images a GPU takes at once.")
@click.option("--max-val-images", type=click.IntRange(min=1), metavar="N", help="N images, as train.py chooses them.")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
@taking(EvalOptions)
def evaluate_command(options: EvalOptions) -> None:
    """Score CHECKPOINT, a .pt file or a run's directory, on every image of a split, once. Runs under torchrun, too.

    The dataset may have some of the network's classes, in any order; numbers and wnids of ImageNet fit together.

    \b
    python train.py eval runs/NAME --data DIR --image-size 288
    python train.py eval runs/NAME --data DIR --labels real
    """
    if options.labels and options.only_data_classes:
        raise click.UsageError("--labels real is over all of the network's outputs: leave out --only-data-classes")
    from penstock.commands.evaluate import run

    run(options)


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Of `train.py predict`. flip: None for what the recipe says. threads: that decode, 0 for one a core."""

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
@click.option("--top-k", type=click.IntRange(min=1), default=5, metavar="K", help="How many classes of each image.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, in place of the table.")
@click.option("--classes", "class_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Readable names of the network's classes: lines KEY NAME, or JSON.")  # fmt: skip
@WEIGHTS
@click.option("--flip/--no-flip", default=None, help="Mean of image and mirror image.  [default: train.val_flip]")
@DEVICE
@click.option("--batch-size", type=click.IntRange(min=1), default=64, metavar="N", help="Images at once.")
@click.option("--threads", type=click.IntRange(min=0), default=0, metavar="N", help="That decode; 0: one a core.")
@taking(PredictOptions)
def predict_command(options: PredictOptions) -> None:
    """Name the classes of image files, and of all images below folders.

    CHECKPOINT is a .pt file; of a run's directory it is the best checkpoint, else the last. Images are resized and
    cropped as in the run's validation, and turned as their EXIF orientation says if the dataset was packed with
    --apply-orientation. JPEG, PNG, WebP, BMP and PPM are taken, in colour, gray or CMYK. A file that cannot be decoded
    is named on stderr (with --json also in its place, as an "error"), and the exit status is then 1.

    \b
    Examples:
      python train.py predict runs/demo-20261124-030029 cat.jpg photos/
      python train.py predict model.pt photos/ --top-k 1 --json > classes.jsonl
    """
    from penstock.commands.predict import run

    run(options)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Of `train.py export`. kind: the format, None for what `out` ends with. opset, dynamic_batch: of ONNX, None for
    what is not given."""

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
    "--format", "kind", type=click.Choice(["torch", "safetensors", "onnx"]), help="[default: by OUT's suffix]"
)
@WEIGHTS
@click.option("--opset", type=click.IntRange(min=MIN_OPSET), metavar="N", help="ONNX: version of its operators.")
@click.option("--dynamic-batch/--static", default=None, help="ONNX: any number of images, or one.  [default: any]")
@taking(ExportOptions)
def export_command(options: ExportOptions) -> None:
    """Write a trained network to OUT, for use elsewhere.

    CHECKPOINT is a .pt file; of a run's directory it is the best checkpoint, else the last. OUT's suffix is the format:

    \b
      .pt, .pth      a state dict with torchvision's or timm's names; OUT.json says how images are prepared
      .safetensors   the same tensors; the metadata say how images are prepared
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
@click.option("--data", metavar="DIR", help="The packed dataset, if it has moved.")
@DEVICE
def replay_command(file: Path, data: str | None, device: Device) -> None:
    """Make a failed step again from FILE, the failed-step-N.pt of a run, and say what went wrong first.

    \b
    python train.py replay runs/NAME/failed-step-00001234.pt
    """
    from penstock.commands.replay import run

    run(file, data, device)


@click.command("audit", context_settings=CONTEXT)
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR|URL", help="Where the dataset is now.  [default: where the run had it]")
def audit_command(run_dir: Path, data: str | None) -> None:
    """Prove from the metrics of RUN that each epoch used every sample once, whatever happened on the way.

    "taken out" are samples that could not be decoded, "left over" those at an epoch's end that fill no global batch.
    """
    from penstock.commands.audit import run

    run(run_dir, data)


@click.command("report", context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The page; the picture lies beside it as .png. [default: RUN/report.html; of several runs "
                   "comparison.html beside the first one]")  # fmt: skip
def report_command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write report.png and report.html of a run directory, finished or not.

    With several, one more page and picture overlay the curves of all.
    """
    from penstock.commands.report import run

    run(runs, out)


COMMANDS = (evaluate_command, predict_command, export_command, replay_command, audit_command, report_command)
