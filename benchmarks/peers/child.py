"""The process of one peer, in its environment, which must have NumPy: `python -P child.py CONNECTION`.

Over the connection, a file descriptor, comes a job. If it is to be prepared, the answer is True; else (seconds from the
start of the process to the first batch, the package's version), then for each request ("run", seconds) what `run` and
for ("describe", number of images) what `check.describe` gives. What fails ends the process; its last line says why.

An adapter has `loader(job)`, the (images, labels) of an epoch or without end, and where it reads files of its own
`prepare(job)`. A job has adapter, package and options of `registry.Peer`, and

    folder, num_images             the images, as FOLDER/LABEL/NAME.jpg
    shards, indexes, dataset       the same images packed: tar files, their indexes, and the folder of both
    prepare, prepared              whether to, and the folder for what `prepare` makes
    repeats                        how often an epoch is to have each image, so that its start is no part of a rate
    image_size, batch_size, workers, cores
    mean, std                      of the normalisation: three grey levels each
    root                           this project, which our own adapter imports
"""

import time

STARTED = time.monotonic()  # before anything else is loaded: what a peer imports is part of its start

import importlib  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import suppress  # noqa: E402
from importlib import metadata  # noqa: E402
from multiprocessing.connection import Connection  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType, SimpleNamespace  # noqa: E402

import numpy as np  # noqa: E402

SETTLE_BATCHES = 8  # taken before each repeat is timed; more where more workers may have more of them ready
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


def endless(adapter: ModuleType, job: SimpleNamespace) -> Batches:
    """Images and labels, epoch after epoch."""
    loader, images = adapter.loader(job), None
    while True:
        for images, labels in loader:
            yield np.asarray(images), np.asarray(labels).reshape(-1)
        if images is None:
            raise ValueError("the loader gives no batch")


def run(batches: Batches, seconds: float, workers: int) -> tuple[int, float]:
    """Images and seconds. What stands decoded already, from another program's turn, is taken uncounted."""
    for _ in range(max(SETTLE_BATCHES, 2 * workers + 2)):
        next(batches)
    num_images, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        num_images += len(next(batches)[0])
    return num_images, elapsed


def work(connection: Connection) -> None:
    job = SimpleNamespace(**connection.recv())
    os.sched_setaffinity(0, job.cores)
    os.environ["NUMBA_NUM_THREADS"] = str(max(job.workers, len(job.cores)))  # FFCV's workers; read when it is loaded
    multiprocessing.set_start_method("fork")  # the default until 3.13; the other ways would run this file again
    sys.path.append(str(Path(__file__).parent))  # for `adapters` and `check`, behind the environment's packages
    adapter = importlib.import_module(f"adapters.{job.adapter}")
    if job.prepare:
        adapter.prepare(job)
        return connection.send(True)
    batches = endless(adapter, job)
    next(batches)
    connection.send((time.monotonic() - STARTED, metadata.version(job.package) if job.package else ""))
    describe = importlib.import_module("check").describe
    with suppress(EOFError):
        while True:
            do, amount = connection.recv()
            connection.send(run(batches, amount, job.workers) if do == "run" else describe(batches, amount, job))


if __name__ == "__main__":
    try:
        work(Connection(int(sys.argv[1])))
    except Exception:
        traceback.print_exc()
        os._exit(1)  # threads and workers of the peer do not hold it up
