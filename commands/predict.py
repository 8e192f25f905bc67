"""`train.py predict`: image files → class names and probabilities."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.commands.image_files import decode_chunks, find_images, read_chunks
from penstock.commands.options import PredictOptions
from penstock.commands.trained_network import Loaded, load_network
from penstock.pipeline.build import threads_per_rank
from penstock.shard_tools.classes import class_infos, read_class_file
from penstock.shard_tools.encode import EncodeConfig
from penstock.shard_tools.sources.naming import EXTENSIONS, Ignored, few_of
from penstock.shard_tools.terminal import as_shown
from penstock.shards.format import ClassInfo, escape, key_name
from penstock.training import distributed, environment
from penstock.training.evaluate import predict_logits
from penstock.training.learner import autocast_dtype, autocast_of
from penstock.training.refusal import told_in_a_line

PIPED_WIDTH = 10_000  # columns of a table without a terminal, so that nothing is wrapped
LEAST_IMAGE, MOST_WORD = 8, 40  # terminal columns: at least for file names, and at most for a word that is not wrapped


class Prediction(NamedTuple):
    """classes: the most likely labels of a file with their probabilities, best first. error: why there are none."""

    file: str
    classes: list[tuple[int, float]]
    error: str | None


@torch.inference_mode()
def predict(
    loaded: Loaded,
    files: Iterable[str],
    *,
    device: torch.device,
    batch_size: int,
    threads: int,
    top_k: int,
    flip: bool,
) -> Iterator[list[Prediction]]:
    """Yield batches of predictions, one for each file, in order, with the same precision as validation.

    threads: number of threads that read and decode. top_k: number of classes per file, at most all. flip: average the
    logits of each image and its mirror image.
    """
    half = device.type == "cuda" and autocast_dtype(loaded.recipe, device) is not None
    autocast = autocast_of(loaded.recipe, device)
    chunks = read_chunks(files, batch_size, threads, EncodeConfig(apply_orientation=loaded.oriented))
    for chunk, images in decode_chunks(
        chunks, loaded.recipe.data, device=device, batch_size=batch_size, threads=threads, half=half
    ):
        with autocast:
            logits = predict_logits(loaded.net, images, flip)
        top = loaded.probabilities(logits).topk(min(top_k, len(loaded.classes)))
        rows = zip(chunk.files, top.indices.tolist(), top.values.tolist(), chunk.errors, strict=True)
        yield [
            Prediction(file, [] if error else list(zip(labels, probabilities, strict=True)), error)
            for file, labels, probabilities, error in rows
        ]


def run(options: PredictOptions) -> None:
    """Run `train.py predict`."""
    ignored, num_images, num_bad = Ignored(), 0, 0
    with told_in_a_line(options.checkpoint):
        device = distributed.start(options.device).device
        environment.choose_kernels()
        loaded = load_network(options.checkpoint, weights=options.weights, device=device)
        if options.class_file:
            loaded = replace(loaded, classes=named(loaded.classes, options.class_file))
        recipe = loaded.recipe
        batches = predict(
            loaded,
            find_images(options.paths, ignored),
            device=device,
            batch_size=options.batch_size,
            threads=threads_per_rank(options.threads, 1),
            top_k=options.top_k,
            flip=recipe.train.val_flip if options.flip is None else options.flip,
        )
        about = f"{loaded.weights} weights of {loaded.path}, {recipe.data.val_image_size} px"
        click.echo(f"{recipe.model.name}, {about}, {environment.device_name(device)}", err=True)
        for predictions in batches:
            _show(predictions, loaded.classes, options.as_json, header=num_images == num_bad)
            num_images += len(predictions)
            num_bad += sum(prediction.error is not None for prediction in predictions)
        if not num_images:
            raise ValueError(f"{', '.join(map(str, options.paths))}: no images found ({', '.join(EXTENSIONS)})")
    if ignored:
        click.echo(f"skipped, no image suffix: {few_of(ignored)}", err=True)
    if num_bad:
        click.echo(f"{num_bad} of {num_images} files could not be decoded", err=True)
        sys.exit(1)


def named(classes: tuple[ClassInfo, ...], class_file: Path) -> tuple[ClassInfo, ...]:
    """The classes with the names from the file, as far as it has them. Raises as `read_class_file`."""
    keys = [info.wnid for info in classes]
    return tuple(class_infos(keys, {info.wnid: info.name for info in classes}, read_class_file(class_file, keys)))


def _show(predictions: list[Prediction], classes: tuple[ClassInfo, ...], as_json: bool, header: bool) -> None:
    for prediction in predictions:
        if prediction.error:
            click.echo(f"{escape(prediction.file)}: {prediction.error}", err=True)
    if as_json:
        click.echo("\n".join(_json_line(prediction, classes) for prediction in predictions))
    elif any(prediction.classes for prediction in predictions):
        console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)
        console.width = max(console.width, _least_width(classes))  # the terminal wraps lines that are wider
        console.print(_table(predictions, classes, header, console))


def _json_line(prediction: Prediction, classes: tuple[ClassInfo, ...]) -> str:
    if prediction.error:
        return json.dumps({"file": prediction.file, "error": prediction.error})
    key = key_name(classes)
    found = [
        {key: classes[label].wnid, "name": classes[label].name, "probability": float(f"{probability:.6g}")}
        for label, probability in prediction.classes
    ]
    return json.dumps({"file": prediction.file, "classes": found})


def _table(predictions: list[Prediction], classes: tuple[ClassInfo, ...], header: bool, console: Console) -> Table:
    """A row for each class of each image. On a terminal the columns have the same widths in every batch. Keys are never
    cut, names wrap between words, and file names wrap anywhere."""
    table = Table(box=None, pad_edge=False, show_header=header, expand=console.is_terminal)
    table.add_column("image", ratio=1, overflow="fold")
    table.add_column("p", width=6)
    table.add_column("class", width=_key_width(classes), no_wrap=True)
    named = _are_named(classes)
    if named:
        longest = max(cell_len(_cell(info.name)) for info in classes)
        room = _word_width(classes) + console.width - _least_width(classes)
        width = max(_word_width(classes), min(longest, console.width // 3, room))
        table.add_column("name", width=width, overflow="fold")
    for prediction in predictions:
        for place, (label, probability) in enumerate(prediction.classes):
            file = prediction.file if place == 0 else ""
            cells = [file, f"{probability:.4f}", classes[label].wnid]
            if named:
                cells.append(classes[label].name)
            table.add_row(*(Text(_cell(cell)) for cell in cells), style="bold" if place == 0 else None)
    return table


def _least_width(classes: tuple[ClassInfo, ...]) -> int:
    """The width below which a table would have to cut keys, or names inside words."""
    widths = [LEAST_IMAGE, 6, _key_width(classes)]
    if _are_named(classes):
        widths.append(_word_width(classes))
    return sum(widths) + 2 * (len(widths) - 1)


def _are_named(classes: tuple[ClassInfo, ...]) -> bool:
    return any(info.name != info.wnid for info in classes)


def _key_width(classes: tuple[ClassInfo, ...]) -> int:
    return max(len("class"), *(cell_len(_cell(info.wnid)) for info in classes))


def _word_width(classes: tuple[ClassInfo, ...]) -> int:
    words = (word for info in classes for word in _cell(info.name).split())
    return min(MOST_WORD, max(map(cell_len, words), default=0))


def _cell(text: str) -> str:
    """The text as a terminal shows it, on one line. Column widths are computed from it."""
    return as_shown(escape(text))
