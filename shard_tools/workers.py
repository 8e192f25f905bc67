"""The executors that make shards: worker processes that never outlive this process, or a Dask cluster.

`ProcessPoolExecutor` leaves its workers behind if the parent is killed, and lets them finish their shard if it is
interrupted. Here, each worker watches a pipe and exits when the pipe closes: when the parent or the `with` block ends.
A single worker is a thread of this process instead; a thread does not need the semaphores of a pool.
"""

import ctypes
import errno
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

CONNECT_S = 10
LOST = (BrokenExecutor, EOFError, ConnectionError)  # `submit` and `result` raise these if processes were killed
P = ParamSpec("P")
T = TypeVar("T")


def num_cpus() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Engine:
    """An executor, how many tasks it runs at once, and what its futures raise when workers are lost."""

    executor: Executor
    slots: int
    lost: tuple[type[BaseException], ...]
    remedy: str  # what to do if workers are lost
    shared: bool = False  # the executor outlives this run, so the run must not leave tasks behind


@contextmanager
def local_engine(workers: int) -> Iterator[Engine]:
    with process_pool(workers) as pool:
        yield Engine(pool, workers, LOST, "with fewer --workers")


@contextmanager
def dask_engine(address: str) -> Iterator[Engine]:
    """Connect to the Dask cluster with the scheduler at `address`. Its workers must see the files at the same paths.

    Raises:
        ValueError: distributed is not installed, no scheduler answers, or there are no workers.
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
    logger.setLevel(logging.CRITICAL)  # the messages below report what users need to know
    client = None
    try:
        try:
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
            slots = sum(client.nthreads().values())
        except (OSError, ValueError, TypeError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{address}: no Dask scheduler answers at this address ({reason}); start one with: dask scheduler"
            ) from None
        if not slots:
            raise ValueError(f"{address}: the Dask cluster has no workers; start some with: dask worker {address}")
        with client.get_executor() as executor:
            yield Engine(executor, slots, (*LOST, KilledWorker, CancelledError), "and check the Dask workers' logs")
    finally:
        if client:
            client.close()
        logger.setLevel(level)


@contextmanager
def process_pool(num_workers: int) -> Iterator[Executor]:
    """An executor of fresh processes, which inherit no threads or locks of the parent. One worker is a thread.

    Raises:
        ValueError: this machine does not allow several processes; the message gives the reason.
    """
    if num_workers == 1:
        with OneThread() as thread:
            yield thread
        return
    if complaint := missing_semaphores():
        raise ValueError(complaint)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["penstock.shard_tools.shard"])
    try:
        _start_forkserver()
        alive, hold = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_watch, initargs=(alive,))
    except OSError as error:  # no directory for temporary files, too many open files …
        raise ValueError(f"worker processes cannot be started ({error.strerror or error}); use --workers 1") from None
    try:
        yield pool
    except BaseException:
        hold.close()  # the workers exit at once
        with suppress(*LOST):
            # The pool's thread may be writing the next task into a pipe. Only a pool that has noticed the lost workers
            # closes this pipe. If we shut the pool down earlier, it waits for that thread forever.
            while True:
                pool.submit(os.getpid).result()
        pool.shutdown()
        raise
    else:
        pool.shutdown()
    finally:
        hold.close()
        alive.close()


def missing_semaphores() -> str:
    """Why a pool cannot be created, and what to do; "" if it can.

    The queues of a pool need POSIX semaphores. Linux keeps them as files in /dev/shm.
    """
    try:
        multiprocessing.get_context("forkserver").Lock()
    except (OSError, ImportError) as error:  # ImportError: built where there were none
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return (
            f"/dev/shm: cannot create the semaphores that several worker processes need "
            f"({getattr(error, 'strerror', None) or error}); use --workers 1, or "
            f"{'free space there' if full else 'make it writable'} (docker: --shm-size 1g or --tmpfs /dev/shm)"
        )
    return ""


class _Stopped(SystemExit):
    """Ends the current task in the thread of `OneThread`. As a SystemExit in a thread, it prints nothing."""


class OneThread(Executor):
    """An executor with one worker thread. The main thread stays free to show progress and handle Ctrl-C.

    Leaving its `with` block with an exception ends the current task at its next Python step and drops the others.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, _Stopped):
                    raise
            else:
                future.set_result(result)

        self._tasks.put(run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._tasks.put(None)
        if wait:
            self._thread.join()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind and self._thread.ident:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(_Stopped))
        self.shutdown()

    def _work(self) -> None:
        with suppress(_Stopped):
            while task := self._tasks.get():
                task()


def _start_forkserver() -> None:
    """Start the process that forks the workers. Like the workers, it ignores Ctrl-C; the parent handles it."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # otherwise handlers cannot be set
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
