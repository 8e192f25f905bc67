"""A pool of worker processes that never outlives this process, however it ends.

`ProcessPoolExecutor` leaves its workers behind when the parent is killed, and lets them finish their shard when it is
interrupted. Here each worker watches a pipe that closes with the parent, or when the `with` block ends, and exits.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection

LOST = (BrokenExecutor, EOFError, ConnectionError)  # what `submit` and `result` raise when processes were killed


def num_cpus() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


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
