"""Peak memory and Python's overhead of packing many tiny images: `python benchmarks/studies/pack_memory.py`.

The images are 4,096 different 8×8 JPEGs in one file, listed over and over by a synthetic source (`--source made`), or
the rows of a CSV table of as many files (`--source csv`). Each count runs in a process of its own with one worker.
Writes a line of JSON a run: seconds of the phases, images/s, peak resident memory (MiB) of the packing process and of
its worker. `bare_s` is what encoding alone takes for the same images: the rest is bookkeeping.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from shard_tools.encode import EncodeConfig, encode
from shard_tools.execute import PackProgress
from shard_tools.shard import ShardJob, write_shard
from shard_tools.sources.base import Place, SourceImage
from shard_tools.writer import PackOptions, pack

NUM_DIFFERENT = 4096
NUM_CLASSES = 1000


def tiny_jpegs() -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(NUM_DIFFERENT):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=80)
        found.append(buffer.getvalue())
    return found


class Made:
    """`count` images out of the few in one file; the same content always has the same class."""

    format, explained = "made", "the same few images over and over"

    def __init__(self, file: Path, jpegs: list[bytes], count: int):
        self.file, self.count = str(file), count
        self.sizes = [len(jpeg) for jpeg in jpegs]
        self.offsets = [0, *np.cumsum(self.sizes).tolist()]
        file.write_bytes(b"".join(jpegs))

    def images(self, work: Path) -> Iterator[SourceImage]:
        for i in range(self.count):
            which = i % NUM_DIFFERENT
            place = Place("stored", self.file, self.offsets[which], self.sizes[which])
            key = f"n{which % NUM_CLASSES:08d}"
            yield SourceImage("train", key, f"train/{key}/{key}_{i:07d}.JPEG", self.sizes[which], place)

    def class_names(self) -> dict[str, str]:
        return {}

    def ignored(self) -> list[str]:
        return []


def write_files(root: Path, jpegs: list[bytes], count: int) -> Path:
    """A CSV table of `count` files."""
    with open(root / "table.csv", "w") as table:
        table.write("path,label\n")
        for i in range(count):
            which = i % NUM_DIFFERENT
            path = root / f"{i % 997:03d}" / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(jpegs[which])
            table.write(f"{path.relative_to(root)},{which % NUM_CLASSES}\n")
    return root / "table.csv"


class OneWorker(Executor):
    """One process that is told the shards one by one, and its peak memory at the end."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,))
        self.process.start()
        self.pipe.recv()  # it has imported everything
        self.busy_s = 0.0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        start = time.perf_counter()
        self.pipe.send(args[0])
        self.pipe.recv()
        self.busy_s += time.perf_counter() - start
        future.set_result(None)
        return future

    def close(self) -> float:
        """Peak resident memory of the worker, MiB."""
        self.pipe.send(None)
        peak = float(self.pipe.recv())
        self.process.join()
        return peak


def _work(pipe: Any) -> None:
    pipe.send("ready")
    while True:
        job: ShardJob | None = pipe.recv()
        if job is None:
            pipe.send(peak_mib())
            return
        write_shard(job)
        pipe.send("done")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind: str, count: int, root: Path) -> dict[str, Any]:
    jpegs = tiny_jpegs()
    (root / "source").mkdir()
    source = (
        Made(root / "source" / "images", jpegs, count) if kind == "made" else write_files(root / "source", jpegs, count)
    )
    config = EncodeConfig()
    start = time.perf_counter()
    for i in range(min(count, 20_000)):
        encode(jpegs[i % NUM_DIFFERENT], config)
    bare_s = (time.perf_counter() - start) * count / min(count, 20_000)
    worker = OneWorker()
    marks: dict[str, float] = {}

    def progress(now: PackProgress) -> None:
        if now.shards:
            marks.setdefault("planned", time.perf_counter())
            marks["last"] = time.perf_counter()

    before = peak_mib()
    start = time.perf_counter()
    pack(source, root / "out", PackOptions(workers=1, encode=config), executor=worker, progress=progress)
    end = time.perf_counter()
    return {
        "source": kind,
        "images": count,
        "list_and_plan_s": round(marks["planned"] - start, 2),
        "shards_s": round(worker.busy_s, 2),
        "bare_s": round(bare_s, 2),
        "merge_s": round(end - marks["last"], 2),
        "images_per_s": round(count / (end - start)),
        "main_before_mib": round(before, 1),
        "main_peak_mib": round(peak_mib(), 1),
        "worker_peak_mib": round(worker.close(), 1),
    }


@click.command()
@click.option("--counts", default="10000,100000,1000000", show_default=True)
@click.option(
    "--source", "kinds", type=click.Choice(["made", "csv"]), multiple=True, default=["made"], show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), help="Append the lines to this file too.")
@click.option("--one", is_flag=True, hidden=True)
def main(counts: str, kinds: tuple[str, ...], out: Path | None, one: bool) -> None:
    """Measure each count of each source."""
    for kind in kinds:
        for count in map(int, counts.split(",")):
            if one:
                with tempfile.TemporaryDirectory() as root:
                    print(json.dumps(measure(kind, count, Path(root))), flush=True)
                continue
            command = [sys.executable, __file__, "--one", "--counts", str(count), "--source", kind]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(line, end="", flush=True)
            if out:
                with open(out, "a") as stream:
                    stream.write(line)


if __name__ == "__main__":
    main()
