"""Where curves and pictures go besides `metrics.jsonl`: TensorBoard always, Weights & Biases where it is asked for.

A tracker has `scalars(values, step)`, `image(tag, picture, step)` and `close(failed)`; tags are `group/name`, pictures
(H, W, 3) uint8, steps the run's optimizer steps.
"""

import threading
import tomllib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Events in `RUN/tensorboard`. Where they cannot be written, it says so once, and the run goes on without them."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._failed = False

    def scalars(self, values: dict[str, float], step: int) -> None:
        def write(writer: "SummaryWriter") -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        self._write(write, step)

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        self._write(lambda writer: writer.add_image(tag, picture, step, dataformats="HWC"), step)

    def close(self, failed: bool = False) -> None:
        if self._writer is not None:
            self._write(lambda writer: writer.close(), 0)

    def _write(self, write: "Callable[[SummaryWriter], None]", step: int) -> None:
        if self._failed:
            return
        try:
            write(self._opened(step))
        except (OSError, UnicodeEncodeError) as error:  # it takes no file name that is no UTF-8
            self._failed = True
            reason = getattr(error, "strerror", None) or str(error)
            click.echo(f"{self._folder}: {reason}; no more curves from here on, metrics.jsonl has them", err=True)

    def _opened(self, step: int) -> "SummaryWriter":
        if self._writer is None:
            _say_nothing_of_tensorboards_thread()
            # Here and not above: the other ranks, --help and the report need no TensorBoard.
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier process logged from this step on is made again after a resume.
            self._writer = SummaryWriter(self._folder, purge_step=step)
        return self._writer


def _say_nothing_of_tensorboards_thread() -> None:
    """Its writing thread ends by an exception that the next call raises in ours; no need to print it there, too."""
    printing = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            printing(args)

    threading.excepthook = hook


class WeightsAndBiases:
    """A run of a W&B project, named as the run directory, with `config.toml` as its settings and files in `RUN/wandb`.

    A run that is resumed goes on in the same W&B run. WANDB_MODE=offline keeps all on this machine.
    """

    def __init__(self, run_dir: Path, project: str) -> None:
        """Raises ValueError where the package is missing, or W&B takes no run."""
        try:
            import wandb
        except ImportError:
            raise ValueError("train.wandb: the package wandb is not installed; uv pip install wandb") from None
        config_file, id_file = run_dir / "config.toml", run_dir / "wandb" / "run-id"
        settings = tomllib.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
        if not id_file.is_file():
            id_file.parent.mkdir(parents=True, exist_ok=True)
            id_file.write_text(uuid.uuid4().hex, encoding="ascii")
        run_id = id_file.read_text(encoding="ascii").strip()
        try:
            self._run = wandb.init(
                project=project, dir=run_dir, name=run_dir.name, id=run_id, resume="allow", config=settings
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"train.wandb = {project!r}: {reason}; run `wandb login` or set WANDB_MODE=offline"
            ) from None
        # Our steps as the x-axis: W&B's own ones must grow, and a resumed run makes some again.
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        self._run.log({tag: self._image(picture), "step": step})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))
