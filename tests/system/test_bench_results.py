"""The facts of machine, environment and processes that a benchmark writes into its result."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.benchmarks import measure, noise, processes, record
from penstock.benchmarks.measure import Sample
from penstock.training import environment


def test_environment_is_json_and_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    described = environment.describe()
    assert json.loads(json.dumps(described))["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert described["cpu_cores"] == len(os.sched_getaffinity(0))
    monkeypatch.setenv("PATH", "")  # no git, no nvidia-smi
    assert environment.describe()["git_commit"] is None


def test_the_family_shares_its_memory() -> None:
    """The pages that a forked child shares with its parent count once."""
    ours = np.ones(100 << 17)  # 105 MB
    alone = processes.memory_mb(processes.family())
    pid = os.fork()
    if not pid:
        time.sleep(60)
    try:
        assert pid in [process.pid for process in processes.family()]
        assert 0.9 < processes.memory_mb(processes.family()) / alone < 1.2
        assert alone > ours.nbytes / 1e6
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert pid not in [process.pid for process in processes.family()]


BUSY = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"


def test_our_own_work_is_ours() -> None:
    before = noise.cpu_time()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    after = noise.cpu_time()
    assert after.own - before.own >= 0.35, "a child that has ended counts"
    assert after.busy - before.busy >= 0.35
    assert after.total - before.total >= 0.35 * len(os.sched_getaffinity(0))


def test_a_result_is_written_and_read(tmp_path: Path) -> None:
    file = tmp_path / "sub/result.json"
    # a byte of a name that is not UTF-8
    written = replace(result(), command="python bench.py loader --data b\udcffd", more={"found": {"threads": 3}})
    record.write(file, written)
    assert record.read(file) == written
    content = json.loads(file.read_text())
    assert content["programs"]["a"] == {"images_per_s": [100, 90], "data_wait": [0.5, 0.25], "memory_mb": 7}
    assert content["ratios"]["a / b"] == {"median": 2, "low": 2, "high": 2, "min": 2, "max": 2}
    assert content["found"] == {"threads": 3}
    assert content["env"]["cores_allowed"]


def test_a_result_that_cannot_be_written_is_named() -> None:
    with pytest.raises(ValueError, match=r"^/dev/full: cannot be written \(No space left on device\)$"):
        record.write(Path("/dev/full"), result())


@pytest.mark.parametrize("rates", [[], [0], ["x"], "x"])
def test_rates_that_are_none_are_named(rates: Any, tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    record.write(file, replace(result(), programs={"a": record.Figures(images_per_s=rates)}))
    with pytest.raises(ValueError, match="images_per_s of 'a'"):
        record.read(file)


def result() -> record.Result:
    samples = {"a": [Sample(100.0, 0.5), Sample(90.0, 0.25)]}
    ratios = {"a / b": measure.ratio([2.0], [1.0])}
    return record.build("loader", {"threads": 2}, samples, ratios, ["noisy"], {"a": {"memory_mb": 7}})
