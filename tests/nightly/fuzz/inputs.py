"""Small valid inputs, as file name → bytes, for the fuzzer to damage. Made once per process."""

import functools
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from penstock.shard_tools.writer import PackOptions, pack
from penstock.training import checkpoint

Files = dict[str, bytes]
NUM_IMAGES = {"train": 7, "val": 3}


class Serial(Executor):
    """An executor that does the work at once, in this process, where it is watched."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def serial_pool(num_workers: int) -> Iterator[Executor]:
    """A stand-in for `workers.process_pool`."""
    yield Serial()


def files_of(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@functools.cache
def images() -> Files:
    rng = np.random.default_rng(0)
    files = {}
    for split, count in NUM_IMAGES.items():
        for i in range(count):
            shape = (int(rng.integers(8, 20)), int(rng.integers(8, 20)), 3)
            stream = io.BytesIO()
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            image.save(stream, "JPEG", quality=75, progressive=i % 3 == 2)
            files[f"{split}/class{i % 3}/{i:03d}.jpg"] = stream.getvalue()
    return files


def write(files: Files, folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@functools.cache
def dataset() -> Files:
    """A packed dataset: two training shards, and one for validation."""
    with tempfile.TemporaryDirectory() as folder:
        write(images(), Path(folder, "images"))
        pack(Path(folder, "images"), Path(folder, "out"), PackOptions(samples_per_shard=4), executor=Serial())
        return files_of(Path(folder, "out"))


@functools.cache
def foreign() -> Files:
    """WebDataset tars as other programs write them: another member order, labels as .cls and as .json, a PNG."""
    pictures = list(images().values())
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 10, 10)).save(stream, "PNG")
    samples: list[dict[str, bytes]] = [
        {"jpg": pictures[0], "cls": b"0"},
        {"json": json.dumps({"label": 1, "caption": "x"}).encode(), "jpg": pictures[1]},
        {"png": stream.getvalue(), "cls": b"2\n"},
        {"jpg": pictures[2], "cls": b"1", "txt": b"anything"},
    ]
    return {"train-0.tar": _tar(samples), "val-0.tar": _tar(samples[:2]), "classes.txt": b"a\nb\nc\n"}


def _tar(samples: list[dict[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, members in enumerate(samples):
            for extension, data in members.items():
                info = tarfile.TarInfo(f"folder/{i:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@functools.cache
def checkpoint_file() -> bytes:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"net": net.state_dict(), "ema": None, "optimizer": optimizer.state_dict(), "scaler": {},
             "at": {"epoch": 1, "position": 12, "step": 3}, "recipe": "[train]\nepochs = 2\n", "dataset": "0" * 64,
             "classes": [{"wnid": "a", "name": "b"}]}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "last.pt")
        checkpoint.save(path, state)
        return path.read_bytes()


@functools.cache
def run() -> Files:
    """The files of a run that the report reads: metrics, settings, quarantined samples."""
    import matplotlib.backends.backend_agg
    import matplotlib.font_manager  # noqa: F401  # reads and writes its cache, unwatched

    lines: list[dict[str, Any]] = []
    for step in range(6):
        rates = {"images_per_s": 100.0 + step, "data_wait": 0.25, "samples": f"{step * 977:016x}"}
        lines.append({"kind": "step", "step": step, "epoch": step // 3, "position": 4 * (step % 3 + 1),
                      "loss": 2.0 / (step + 1), "lr": 0.1} | rates)  # fmt: skip
        if step % 3 == 2:
            at = {"step": step + 1, "epoch": step // 3 + 1, "position": 0}
            lines.append({"kind": "epoch"} | at | {"bad_samples": 1})
            lines.append({"kind": "eval"} | at | {"top1": 0.5, "top5": 0.9, "loss": 1.0, "num_images": 3})
    lines.append(
        {"kind": "end", "epoch": 2, "step": 6, "position": 0, "top1": 0.5, "images_per_s": 9.0, "seconds": 1.0}
    )
    worst = {"worst": [{"file": "worst/0.jpg", "loss": 3.5, "label_name": "a", "prediction_name": "b",
                       "probability": 0.9,
                        "source": "val/a/0.jpg"}],
             "confused": [{"label_name": "a", "prediction_name": "b", "count": 2, "share": 0.5}],
             "lowest": [{"label_name": "a", "accuracy": 0.25, "num_images": 4}]}  # fmt: skip
    bad = {"sample_id": 3, "epoch": 0, "position": 5, "where": "train-000000.tar at byte 512 (x)", "reason": "cut off"}
    return {
        "metrics.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in lines),
        "quarantine.jsonl": json.dumps(bad).encode() + b"\n" + json.dumps(bad | {"sample_id": 4}).encode() + b"\n",
        "worst.json": json.dumps(worst).encode(),
        "worst/0.jpg": images()["val/class0/000.jpg"],
        "config.toml": b'name = "demo"\n[train]\nepochs = 2\nseed = 0\n',
    }
