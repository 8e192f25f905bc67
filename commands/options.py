"""The sub-commands of `train.py`: their options. What they do is in the modules that they name, imported when one runs.

So `--help`, and what is wrong on a command line, take no torch.
"""

from pathlib import Path
from typing import Any

import click

CONTEXT = {"show_default": True, "max_content_width": 110}


def existing(context: click.Context, parameter: click.Parameter, path: Path) -> Path:
    """A checkpoint's path that is there: told now, not after torch's import."""
    try:
        if path.exists():
            return path
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    raise click.ClickException(f"{path}: no such checkpoint")


CHECKPOINT = click.argument("checkpoint", metavar="CHECKPOINT|RUN", type=click.Path(path_type=Path), callback=existing)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                      help="auto: CUDA if it is there.")  # fmt: skip
WEIGHTS = click.option("--weights", type=click.Choice(["auto", "raw", "ema"]), default="auto",
                       help="auto: EMA if there is one.")  # fmt: skip
MIN_OPSET = 18  # torch's ONNX exporter writes this and later ones itself; to earlier ones it would have to convert
IN_ONE_PROCESS = ("predict", "export", "replay", "audit", "report")


@click.command("eval", context_settings=CONTEXT)
@CHECKPOINT
@click.option("--data", metavar="DIR|URL", help="Packed dataset; by default the one that the run was trained on.")
@click.option("--split", metavar="NAME", help="[default: the recipe's data.val_split]")
@click.option("--class-map", type=click.Path(path_type=Path), metavar="FILE",
              help="Which class is which: lines KEY-OF-THE-NETWORK KEY-OF-THE-DATASET, or JSON.  [default: by key]",
              )  # fmt: skip
@WEIGHTS
@click.option("--image-size", type=click.IntRange(min=1), metavar="S", help="[default: the recipe's val_image_size]")
@click.option("--resize-size", type=click.IntRange(min=1), metavar="S", help="[default: in the recipe's proportion]")
@click.option("--flip/--no-flip", default=None, help="Mean with the mirror image's. [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, metavar="B", help="Images a GPU takes at once.")
@click.option("--max-val-images", type=click.IntRange(min=1), metavar="N", help="N images, as train.py chooses them.")
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def evaluate_command(**given: Any) -> None:
    """Score CHECKPOINT, a .pt file or a run's directory, on every image of a split, once. Runs under torchrun, too.

    The dataset may have some of the network's classes, in any order; numbers and wnids of ImageNet fit together.

    \b
    python train.py eval runs/NAME --data DIR --image-size 288
    """
    from commands.evaluate import run

    run(**given)


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
def predict_command(**given: Any) -> None:
    """Name the classes of image files, and of all images below folders.

    CHECKPOINT is a .pt file; of a run's directory it is the best checkpoint, else the last. Images are resized and
    cropped as in the run's validation, and turned as their EXIF orientation says if the dataset was packed with
    --apply-orientation. JPEG, PNG, WebP and BMP are taken, in colour, gray or CMYK. A file that cannot be decoded is
    named on stderr (with --json also in its place, as an "error"), and the exit status is then 1.

    \b
    Examples:
      python train.py predict runs/demo-20261124-030029 cat.jpg photos/
      python train.py predict model.pt photos/ --top-k 1 --json > classes.jsonl
    """
    from commands.predict import run

    run(**given)


@click.command("export", context_settings=CONTEXT)
@CHECKPOINT
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["torch", "safetensors", "onnx"]), help="[default: by OUT's suffix]"
)
@WEIGHTS
@click.option("--opset", type=click.IntRange(min=MIN_OPSET), metavar="N", help="ONNX: version of its operators.")
@click.option("--dynamic-batch/--static", default=None, help="ONNX: any number of images, or one.  [default: any]")
def export_command(**given: Any) -> None:
    """Write a trained network to OUT, for use elsewhere.

    CHECKPOINT is a .pt file; of a run's directory it is the best checkpoint, else the last. OUT's suffix is the format:

    \b
      .pt, .pth      a state dict with torchvision's names; OUT.json says how images are prepared
      .safetensors   the same tensors; the metadata say how images are prepared
      .onnx          a graph, checked against torch by onnxruntime before it is written; needs: uv sync --extra onnx

    \b
    Examples:
      python train.py export runs/demo-20261124-030029 model.safetensors
      python train.py export runs/imagenet/checkpoints/last.pt model.onnx --weights raw
    """
    from commands.export import run

    run(**given)


@click.command("replay", context_settings=CONTEXT)
@click.argument("file", type=click.Path(path_type=Path), callback=existing)
@click.option("--data", metavar="DIR", help="The packed dataset, if it has moved.")
@DEVICE
def replay_command(**given: Any) -> None:
    """Make a failed step again from FILE, the failed-step-N.pt of a run, and say what went wrong first.

    \b
    python train.py replay runs/NAME/failed-step-00001234.pt
    """
    from commands.replay import run

    run(**given)


@click.command("audit", context_settings=CONTEXT)
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR|URL", help="Where the dataset is now.  [default: where the run had it]")
def audit_command(**given: Any) -> None:
    """Prove from the metrics of RUN that each epoch used every sample once, whatever happened on the way.

    "taken out" are samples that could not be decoded, "left over" those at an epoch's end that fill no global batch.
    """
    from commands.audit import run

    run(**given)


@click.command("report", context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The page; the picture lies beside it as .png. [default: RUN/report.html; of several runs "
                   "comparison.html beside the first one]")  # fmt: skip
def report_command(**given: Any) -> None:
    """Write report.png and report.html of a run directory, finished or not.

    With several, one more page and picture overlay the curves of all.
    """
    from commands.report import run

    run(**given)


COMMANDS = (evaluate_command, predict_command, export_command, replay_command, audit_command, report_command)
