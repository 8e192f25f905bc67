"""The process of one peer: `python -P child.py ADAPTER.py`, in the peer's environment.

The first line of standard input is the job, each further one a request; each of those is answered by one line. All are
JSON; below, the answer is what {"answer": …} has:

    {"do": "prepare"}                                      → {"seconds": …}
    {"do": "start"}                                        → {"first_batch_s": …, "version": "…"}
    {"do": "describe", "num_images": N}                    → see `observe.describe`
    {"do": "describe_crops", "num_images": N, "size": …, "job": …}   → see `observe.describe_crops`; on that job
    {"do": "run", "seconds": T}                            → {"images": …, "seconds": …}

A request that fails is answered by {"error": "…"}, an adapter whose package is not there by {"missing": "…"}. The
process ends with its input. What libraries print goes to standard error. Of packages this needs NumPy alone.
"""

import time

STARTED = time.monotonic()  # before anything else is loaded: what a peer imports is part of its start

import importlib.util  # noqa: E402
import json  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import closing  # noqa: E402
from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType, SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402


def load(name: str, path: Path) -> ModuleType:
    """A module from its file: its folder must not be on the path, where `adapters/timm.py` would hide timm."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Session:
    """One adapter and its batches; a method for each request."""

    def __init__(self, adapter: ModuleType, job: SimpleNamespace) -> None:
        self.adapter, self.job = adapter, job
        self.observe = load("observe", Path(__file__).with_name("observe.py"))

    def prepare(self) -> dict[str, Any]:
        started = time.monotonic()
        self.adapter.prepare(self.job)
        return {"seconds": time.monotonic() - started}

    def start(self) -> dict[str, Any]:
        self.batches = self.adapter.batches(self.job)
        next(self.batches)
        first_batch_s = time.monotonic() - STARTED
        return {"first_batch_s": first_batch_s, "version": self.job.package and metadata.version(self.job.package)}

    def describe(self, num_images: int) -> dict[str, Any]:
        return self._joined(self.batches, num_images, self.observe.describe)

    def describe_crops(self, num_images: int, size: list[int], job: dict[str, Any]) -> dict[str, Any]:
        def crops(images: Any) -> dict[str, Any]:
            found = self.observe.describe(images)
            if "means" in found:
                found |= self.observe.describe_crops(images, self.job.mean, self.job.std, size)
            return found

        with closing(self.adapter.batches(SimpleNamespace(**job))) as batches:
            return self._joined(batches, num_images, crops)

    def _joined(self, batches: Iterator[Any], num_images: int, describe: Any) -> dict[str, Any]:
        parts, count = [], 0
        while count < num_images:
            images = next(batches)
            parts.append(describe(images))
            count += max(1, len(images))
        return self.observe.joined(parts)

    def run(self, seconds: float) -> dict[str, Any]:
        """What stands decoded at the beginning, from a time when another program's turn was, is taken uncounted."""
        for _ in range(self.job.settle):
            next(self.batches)
        num_images, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            num_images += len(next(self.batches))
        return {"images": num_images, "seconds": elapsed}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of libraries must not come between the answers
    job = SimpleNamespace(**json.loads(sys.stdin.readline()))
    os.sched_setaffinity(0, job.cores)
    os.environ["NUMBA_NUM_THREADS"] = str(max(job.workers, len(job.cores)))  # FFCV's workers; read when it is loaded
    multiprocessing.set_start_method("fork")  # the default until 3.13; the other ways cannot find the adapter's module
    session: Session | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            session = session or Session(load("adapter", Path(sys.argv[1])), job)
            answer = {"answer": getattr(session, request.pop("do"))(**request)}
        except ImportError as error:
            answer = {"missing": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
