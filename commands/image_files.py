"""Image files and folders → batches of normalised images, as a validation loader would give them.

Each file becomes the JPEG that packing would store (`shard_tools.encode`), and goes through validation's own resize and
crop (`pipeline.graph`). Files are streamed, so memory does not grow with their number. A gray image takes the place of
a file that cannot be used.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from penstock.pipeline.augment import AugmentParams, centre_crop_params
from penstock.pipeline.config import DataConfig
from penstock.pipeline.graph import build_graph, encoded, graph_inputs
from penstock.pipeline.gray import with_unit_factor
from penstock.pipeline.holes import GRAY, GRAY_SIDE
from penstock.pipeline.probe import bad_header, find_bad, raised_by_dali
from penstock.shard_tools.encode import BadImage, EncodeConfig, Encoded, encode
from penstock.shard_tools.sources.naming import is_image, is_junk

UNTOUCHED = EncodeConfig()
Inputs = tuple[object, ...]  # a batch for DALI's graph: JPEGs, then arrays


def find_images(paths: Iterable[Path], ignored: list[str]) -> Iterator[str]:
    """Yield the files among `paths`, and the image files in its folders, searched recursively and sorted by name.

    Hidden files and files that operating systems leave behind are skipped. Other files without an image's suffix are
    skipped and added to `ignored`.
    """
    for path in paths:
        if path.is_dir():
            yield from _walk(str(path), ignored, frozenset())
        else:
            yield str(path)


def _walk(folder: str, ignored: list[str], above: frozenset[str]) -> Iterator[str]:
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder that contains it
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not is_junk(entry.name)), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _walk(entry.path, ignored, above | {here})
        elif is_image(entry.name) and (entry.is_file() or entry.is_symlink()):  # not a pipe, which may never end
            yield entry.path
        else:
            ignored.append(entry.path)


@dataclass
class Chunk:
    """Up to a batch of files, in order. A gray image replaces each file with an error.

    jpegs: n (size,) uint8. heights, widths: (n,) int64 pixels. errors: why a file cannot be used.
    """

    files: list[str]
    jpegs: list[np.ndarray]
    heights: np.ndarray
    widths: np.ndarray
    errors: list[str | None]

    def take_out(self, place: int, error: str) -> None:
        self.jpegs[place], self.errors[place] = GRAY, error
        self.heights[place] = self.widths[place] = GRAY_SIDE

    def params(self, config: DataConfig) -> AugmentParams:
        return centre_crop_params(self.heights, self.widths, config.val_image_size, config.val_resize_size)


def read_chunks(
    files: Iterable[str], batch_size: int, threads: int, config: EncodeConfig = UNTOUCHED
) -> Iterator[Chunk]:
    """Read and check the files, and convert them to JPEGs as `config` specifies."""
    files, read = iter(files), partial(_read, config=config)
    with ThreadPoolExecutor(threads) as executor:
        while names := list(islice(files, batch_size)):
            sides = np.zeros((2, len(names)), np.int64)
            chunk = Chunk(names, [GRAY] * len(names), sides[0], sides[1], [None] * len(names))
            for place, found in enumerate(executor.map(read, names)):
                if isinstance(found, str):
                    chunk.take_out(place, found)
                    continue
                chunk.jpegs[place] = jpeg = np.frombuffer(found.jpeg, np.uint8)
                chunk.heights[place], chunk.widths[place] = found.height, found.width
                if complaint := bad_header(jpeg, found.height, found.width):
                    chunk.take_out(place, complaint)
            yield chunk


def _read(file: str, config: EncodeConfig) -> Encoded | str:
    """A file as packing would store it, or the reason why it cannot be packed."""
    try:
        return encode(Path(file).read_bytes(), config)
    except BadImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__


def decode_chunks(
    chunks: Iterator[Chunk], config: DataConfig, *, device: torch.device, batch_size: int, threads: int, half: bool
) -> Iterator[tuple[Chunk, Tensor]]:
    """Yield each chunk with its images: (n, 3, S, S) float32, or float16 if `half`, normalised, channels_last in
    memory, on the device. The images are valid until the next chunk is requested.

    An image that only DALI rejects is replaced in its chunk. Raises ValueError if DALI fails for another reason.
    """
    gpu = (device.index or 0) if device.type == "cuda" else None
    stream = torch.cuda.current_stream(device) if gpu is not None else None
    in_flight: deque[tuple[Chunk, Inputs]] = deque()  # chunks with the arrays that DALI reads without a copy

    def next_inputs() -> Inputs:
        chunk = next(chunks)  # its StopIteration ends the graph's epoch
        arrays = graph_inputs(chunk.params(config), config, on_gpu=gpu is not None)
        if gpu is not None:
            chunk.jpegs = [with_unit_factor(jpeg) for jpeg in chunk.jpegs]
        inputs = encoded(chunk.jpegs), *arrays.values()
        in_flight.append((chunk, inputs))
        return inputs

    while first := next(chunks, None):
        chunks = chain([first], chunks)
        pipe = build_graph(
            next_inputs,
            list(graph_inputs(first.params(config), config, on_gpu=gpu is not None)),
            config,
            image_size=config.val_image_size,
            batch_size=batch_size,
            threads=threads,
            gpu=gpu,
            half=half,
        )
        try:
            while True:
                (output,) = pipe.run(stream)
                yield in_flight[0][0], torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
                in_flight.popleft()
        except StopIteration:
            return
        except RuntimeError as error:  # libjpeg accepts an image that DALI rejects; the pipeline cannot be used again
            if not raised_by_dali(error):
                raise
            waiting = [chunk for chunk, _ in in_flight]
            in_flight.clear()
            _take_out_bad(waiting, config, gpu, error)
            chunks = chain(waiting, chunks)


def _take_out_bad(chunks: list[Chunk], config: DataConfig, gpu: int | None, error: RuntimeError) -> None:
    """Replace the images that DALI cannot decode, in the first chunk that has any."""
    for chunk in chunks:
        bad = find_bad(chunk.jpegs, chunk.params(config), config, gpu)
        for place, complaint in bad.items():
            chunk.take_out(place, complaint)
        if bad:
            return
    line = str(error).strip().splitlines()[0]
    raise ValueError(f"DALI failed, although it decodes every image on its own: {line}") from error
