"""The process of one peer: `python -P child.py CONNECTION`. It runs in the peer's environment, which must have NumPy.

CONNECTION is a file descriptor. The process first receives a job over it. If the job is to prepare files, the process
answers True and ends. Otherwise it answers (seconds from the start of the process to the first batch, the package's
version). Then it answers each request ("run", seconds) with the result of `run`, and each request ("describe", number
of images) with the result of `check.describe`. An error ends the process, and its last line of output has the reason.

An adapter defines `loader(job)`, which gives the (images, labels) of one epoch or without end. If it reads files of its
own, it also defines `prepare(job)`. A job has adapter, package and options of `registry.Peer`, and

    folder, num_images             the images, as FOLDER/LABEL/NAME.jpg
    shards, indexes, dataset       the same images packed: tar files, their indexes, and the folder of both
    prepare, prepared              whether to prepare files, and the folder for them
    repeats                        how often an epoch has each image, long enough to hide the epoch's start in a rate
    image_size, batch_size, workers, cores
    mean, std                      of the normalisation: three grey levels each
    root                           this project's folder, for our own adapter's imports
"""

import time

STARTED = time.monotonic()  # before other imports, since a peer's imports are part of its start

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

SETTLE_BATCHES = 8  # thrown away before each repeat; more with many workers, which may have more batches ready
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


def endless(adapter: ModuleType, job: SimpleNamespace) -> Batches:
    """Yield images and labels, epoch after epoch."""
    loader, images = adapter.loader(job), None
    while True:
        for images, labels in loader:
            yield np.asarray(images), np.asarray(labels).reshape(-1)
        if images is None:
            raise ValueError("the loader gives no batches")


def run(batches: Batches, seconds: float, workers: int) -> tuple[int, float]:
    """Count images and seconds. Batches decoded during another program's turn are thrown away first."""
    for _ in range(max(SETTLE_BATCHES, 2 * workers + 2)):
        next(batches)
    num_images, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        num_images += len(next(batches)[0])
    return num_images, elapsed


def work(connection: Connection) -> None:
    job = SimpleNamespace(**connection.recv())
    os.sched_setaffinity(0, job.cores)
    os.environ["NUMBA_NUM_THREADS"] = str(max(job.workers, len(job.cores)))  # for FFCV's workers; read at import
    multiprocessing.set_start_method("fork")  # the default until 3.13; other methods would run this file again
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
        os._exit(1)  # without waiting for the peer's threads and workers
