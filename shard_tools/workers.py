"""A pool of worker processes that never outlives this process, however it ends.

`ProcessPoolExecutor` leaves its workers behind when the parent is killed, and lets them finish their shard when it is
interrupted. Here each worker watches a pipe that closes with the parent, or when the `with` block ends, and exits.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection


def num_cpus() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def process_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of fresh processes (no threads or locks of the parent are forked into them)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shard_tools.shard"])
    alive, hold = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_watch, initargs=(alive,))
    try:
        yield pool
    except BaseException:
        hold.close()  # the workers drop what they are doing
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    else:
        pool.shutdown()
    finally:
        hold.close()
        alive.close()


def _watch(alive: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_exit_with, args=(alive,), daemon=True).start()


def _exit_with(alive: Connection) -> None:
    try:
        alive.poll(None)
    finally:
        os._exit(1)
