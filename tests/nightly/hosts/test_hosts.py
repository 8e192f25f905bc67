"""Training over two and three hosts gives each step the samples of one host, even if hosts fail."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from penstock import train
from penstock.commands.audit import audit
from tests.nightly.hosts.hosts import network, permitted

STEPS_PER_EPOCH = 7  # 90 training images in global batches of 12
TIMEOUT_S = 40  # for a host that is cut off to be missed; a busy machine needs some of it for a step
SMALL = {
    "data.image_size": 32, "data.val_image_size": 32, "data.val_resize_size": 32, "model.name": "cifar_resnet8",
    "train.global_batch_size": 12, "train.log_every": 1, "train.precision": "fp32", "schedule.warmup_epochs": 0.5,
    "train.checkpoint_every": 1, "data.threads": 1,
}  # fmt: skip

pytestmark = pytest.mark.skipif(not permitted(), reason="network namespaces are not permitted here, or there is no ip")


def arguments(data: Path, run_dir: Path, epochs: int, **more: int) -> list[str]:
    settings = SMALL | {f"train.{name}": value for name, value in more.items()} | {"train.epochs": epochs}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["--data", str(data), "--run-dir", str(run_dir), "--device", "cpu", *sets]


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The complete lines of the metrics so far."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def samples(run_dir: Path) -> dict[int, str]:
    return {line["step"]: line["samples"] for line in lines(run_dir, "step")}


def wait_for(condition: Callable[[], object], what: str, folder: Path, timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("host-*.log")))
            raise AssertionError(f"no {what} after {timeout_s} s\n{logs}")
        time.sleep(0.1)


def test_two_hosts_see_the_samples_of_one(dataset_dir: Path, tmp_path: Path) -> None:
    words = arguments(dataset_dir, tmp_path / "run", epochs=1)
    with network(2) as built:
        processes = [built.torchrun(host, "2", words, tmp_path) for host in (0, 1)]
        wait_for(lambda: all(p.poll() is not None for p in processes), "end", tmp_path)
    assert [p.returncode for p in processes] == [0, 0], (tmp_path / "host-0.log").read_text()
    (epoch,) = audit(tmp_path / "run")  # by the plan, which knows of no hosts
    assert (epoch.steps, epoch.samples, epoch.deviation, epoch.is_over) == (STEPS_PER_EPOCH, 84, "", True)
    assert "2 × " in (tmp_path / "host-0.log").read_text()


@pytest.mark.long
def test_three_hosts_and_one_agree_in_every_step(dataset_dir: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(train.main, arguments(dataset_dir, tmp_path / "alone", epochs=2))
    assert result.exit_code == 0, result.output
    words = arguments(dataset_dir, tmp_path / "run", epochs=2)
    with network(3) as built:
        processes = [built.torchrun(host, "3", words, tmp_path) for host in range(3)]
        wait_for(lambda: all(p.poll() is not None for p in processes), "end", tmp_path)
    assert [p.returncode for p in processes] == [0, 0, 0]
    assert samples(tmp_path / "run") == samples(tmp_path / "alone")
    assert len(samples(tmp_path / "run")) == 2 * STEPS_PER_EPOCH


@pytest.mark.parametrize(("num_hosts", "nodes"), [(2, "2"), (3, "1:3")])
@pytest.mark.long
def test_a_host_cut_off_and_brought_back(num_hosts: int, nodes: str, dataset_dir: Path, tmp_path: Path) -> None:
    """With a fixed number of hosts the others wait for it. An elastic run continues without it and readmits it."""
    run_dir, epochs = tmp_path / "run", 30
    words = arguments(dataset_dir, run_dir, epochs, eval_every=epochs, timeout_s=TIMEOUT_S)
    lost = num_hosts - 1
    with network(num_hosts) as built:
        processes = [built.torchrun(host, nodes, words, tmp_path) for host in range(num_hosts)]
        wait_for(lambda: len(lines(run_dir, "step")) > STEPS_PER_EPOCH + 3, "second epoch", tmp_path)
        before = lines(run_dir, "step")[-1]["step"]
        built.cut(lost)
        told, started = re.compile(f"no progress for .* rank {lost} (is silent|has not)"), time.monotonic()
        logs = [tmp_path / f"host-{host}.log" for host in range(num_hosts) if host != lost]
        wait_for(lambda: any(told.search(log.read_text()) for log in logs), "line that says who is lost", tmp_path)
        assert time.monotonic() - started < 3 * TIMEOUT_S
        if nodes == "1:3":
            wait_for(lambda: lines(run_dir, "step")[-1]["step"] > before + 3, "step without the host", tmp_path)
        built.crash(lost)
        built.mend(lost)
        processes[lost] = built.torchrun(lost, nodes, words, tmp_path)  # as its scheduler would
        wait_for(lambda: all(p.poll() is not None for p in processes), "end", tmp_path, timeout_s=600)
    assert [p.returncode for p in processes] == [0] * num_hosts
    found = audit(run_dir)
    assert [(epoch.steps, epoch.deviation, epoch.is_over) for epoch in found] == [(STEPS_PER_EPOCH, "", True)] * epochs
    steps = [line["step"] for line in lines(run_dir, "step")]
    assert sorted(set(steps)) == list(range(STEPS_PER_EPOCH * epochs))
    assert len(steps) - len(set(steps)) <= 2 * num_hosts  # made again: the step in flight, at each start anew
