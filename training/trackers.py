"""Trackers that show curves and pictures: TensorBoard always, Weights & Biases if requested.

A tracker has `scalars(values, step)`, `image(tag, picture, step)` and `close(failed)`. Tags are `group/name`, pictures
are (H, W, 3) uint8, and steps are the run's optimizer steps.
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
    """Writes events to `RUN/tensorboard`. If that fails, it prints a line once, and the run continues without them."""

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
        except (OSError, UnicodeEncodeError) as error:  # TensorBoard accepts only file names in UTF-8
            self._failed = True
            reason = getattr(error, "strerror", None) or str(error)
            click.echo(f"{self._folder}: {reason}; no more TensorBoard curves, but metrics.jsonl has them", err=True)

    def _opened(self, step: int) -> "SummaryWriter":
        if self._writer is None:
            _say_nothing_of_tensorboards_thread()
            # Imported here because the other ranks, --help and the report need no TensorBoard.
            from torch.utils.tensorboard import SummaryWriter

            # After a resume, the steps from here on are logged again: remove those of the earlier process.
            self._writer = SummaryWriter(self._folder, purge_step=step)
        return self._writer


def _say_nothing_of_tensorboards_thread() -> None:
    """Do not print the exception that ends TensorBoard's writing thread. The next call raises it in our thread."""
    printing = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            printing(args)

    threading.excepthook = hook


class WeightsAndBiases:
    """A run of a W&B project, with the name of the run directory, the settings of `config.toml` and files in
    `RUN/wandb`.

    A resumed run continues the same W&B run. WANDB_MODE=offline keeps everything on this machine.
    """

    def __init__(self, run_dir: Path, project: str) -> None:
        """Raises ValueError if the package is missing, or W&B rejects the run."""
        try:
            import wandb
        except ImportError:
            raise ValueError(
                "train.wandb: the package wandb is not installed. Install it: uv pip install wandb"
            ) from None
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
                f"train.wandb = {project!r}: {reason}. Run `wandb login` or set WANDB_MODE=offline"
            ) from None
        # Use our steps as the x-axis: W&B's own steps must increase, but a resumed run repeats some.
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        self._run.log({tag: self._image(picture), "step": step})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))
