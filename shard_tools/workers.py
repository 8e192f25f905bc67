"""What runs the shards: worker processes that never outlive this process however it ends, or a Dask cluster.

`ProcessPoolExecutor` leaves its workers behind when the parent is killed, and lets them finish their shard when it is
interrupted. Here each worker watches a pipe that closes with the parent, or when the `with` block ends, and exits.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection

CONNECT_S = 10
LOST = (BrokenExecutor, EOFError, ConnectionError)  # what `submit` and `result` raise when processes were killed


def num_cpus() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Engine:
    """An executor, how many tasks it runs at once, and what its futures raise when workers are lost."""

    executor: Executor
    slots: int
    lost: tuple[type[BaseException], ...]
    remedy: str  # for those who lost workers
    shared: bool = False  # it goes on after this run, which must not leave tasks behind


@contextmanager
def local_engine(workers: int) -> Iterator[Engine]:
    with process_pool(workers) as pool:
        yield Engine(pool, workers, LOST, "with fewer --workers")


@contextmanager
def dask_engine(address: str) -> Iterator[Engine]:
    """The Dask cluster whose scheduler answers at `address`. Its workers see the files under the same paths.

    Raises:
        ValueError: distributed is not installed, nothing answers, or there are no workers.
    """
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise ValueError(
            "--scheduler needs Dask, which is not installed; install the extra: uv sync --extra dask"
        ) from None
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what concerns people is said below
    client = None
    try:
        try:
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
            slots = sum(client.nthreads().values())
        except (OSError, ValueError, TypeError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{address}: no Dask scheduler answers there ({reason}); start one with: dask scheduler"
            ) from None
        if not slots:
            raise ValueError(f"{address}: the Dask cluster has no workers; start some with: dask worker {address}")
        with client.get_executor() as executor:
            yield Engine(executor, slots, (*LOST, KilledWorker, CancelledError), "and look at the Dask workers' logs")
    finally:
        if client:
            client.close()
        logger.setLevel(level)


@contextmanager
def process_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of fresh processes (no threads or locks of the parent are forked into them)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shard_tools.shard"])
    _start_forkserver()
    alive, hold = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_watch, initargs=(alive,))
    try:
        yield pool
    except BaseException:
        hold.close()  # the workers drop what they are doing
        with suppress(*LOST):
            # Only a pool that has noticed this closes the pipe into which its thread may be writing the next task; one
            # that is shut down before waits for that thread for ever.
            while True:
                pool.submit(os.getpid).result()
        pool.shutdown()
        raise
    else:
        pool.shutdown()
    finally:
        hold.close()
        alive.close()


def _start_forkserver() -> None:
    """Start the process that forks the workers; like them it leaves it to the parent what a Ctrl-C means."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # else handlers cannot be set
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        forkserver.ensure_running()
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, previous)


def _watch(alive: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(alive,), daemon=True).start()


def _exit_with(alive: Connection) -> None:
    try:
        alive.poll(None)
    finally:
        os._exit(1)
