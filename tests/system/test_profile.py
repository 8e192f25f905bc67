"""`train.py --profile N`: a trace that any viewer reads, with N of each range; training is unchanged."""

import gzip
import json
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.pipeline import ranges
from penstock.training.distributed import World
from penstock.training.profile import NAMES, SKIPPED, Profile
from tests.common import runs


def ranges_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The ranges in a trace of the Chrome format, by name."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for event in events:
        if event.get("cat") == "user_annotation" and event["name"] in found:
            found[event["name"]].append(event)
    return found


def inside(range: dict[str, Any], others: list[dict[str, Any]]) -> bool:
    return any(o["ts"] <= range["ts"] and range["ts"] + range["dur"] <= o["ts"] + o["dur"] for o in others)


def test_a_trace_has_each_range_once_a_step_and_changes_no_loss(dataset_dir: Path, tmp_path: Path) -> None:
    """Across the end of an epoch, with a validation. The printed table equals the trace's."""
    plain = runs.run(dataset_dir, tmp_path / "plain", train__epochs=3)
    done = runs.run(dataset_dir, tmp_path / "traced", "--profile", "6", train__epochs=3)
    assert done.exit_code == plain.exit_code == 0, done.output
    for key in ("loss", "samples"):
        assert runs.by_step(tmp_path / "traced", key) == runs.by_step(tmp_path / "plain", key)
    path = tmp_path / "traced" / "trace.json.gz"
    found = ranges_of(path)
    num_copies = len(found["copy"])
    found["copy"] = [copy for copy in found["copy"] if inside(copy, found["wait"])]
    assert {name: len(events) for name, events in found.items()} == dict.fromkeys(NAMES, 6)
    assert num_copies > 6  # those of the validation
    for wait, _, *others in zip(*found.values(), strict=True):
        for one, next_one in pairwise([wait, *others]):
            assert one["ts"] + one["dur"] <= next_one["ts"]
    lines = done.output.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("profile"))
    assert lines[at] == f"profile           {path}: 6 steps; open it at ui.perfetto.dev or chrome://tracing"
    for name, line in zip(NAMES, lines[at + 1 :], strict=True):
        mean_ms = sum(event["dur"] for event in found[name]) / 6e3  # Chrome's unit is the microsecond
        words = line.split()
        assert words[0] == name
        assert float(words[1]) == pytest.approx(mean_ms, abs=2, rel=0.5)  # two clocks, and other processes
    shares = [float(line.split()[5].rstrip("%,")) for line in lines[at + 1 :] if not line.startswith("  copy")]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert not (tmp_path / "plain" / "trace.json.gz").exists()
    assert "profile" not in plain.output


def test_fewer_steps_are_traced_where_the_run_ends_and_it_says_how_many(dataset_dir: Path, tmp_path: Path) -> None:
    """A resumed run counts its own steps, and a batch in two parts has two of each range but the optimizer's."""
    more = {"train__accumulation": 2, "data__val_split": "none"}
    first = runs.run(dataset_dir, tmp_path / "run", "--max-steps", "2", "--profile", "5", **more)
    assert f"profile           none: the first {SKIPPED} steps are not traced, and the run did 2" in first.output
    assert not (tmp_path / "run" / "trace.json.gz").exists()
    done = runs.run(dataset_dir, tmp_path / "run", "--max-steps", "14", "--profile", "5", **more)
    assert done.exit_code == 0, done.output
    assert re.search(r"trace\.json\.gz: 2 of the 5 steps; open", done.output)
    found = {name: len(events) for name, events in ranges_of(tmp_path / "run" / "trace.json.gz").items()}
    assert found == {"wait": 4, "copy": 4, "forward": 4, "backward": 4, "step": 2}
    for number in ("0", "-1", "x"):
        refused = runs.run(dataset_dir, tmp_path / "no", "--profile", number)
        assert refused.exit_code == 2
        assert "Invalid value for '--profile'" in refused.output


def test_each_rank_has_a_trace_of_its_own(tmp_path: Path) -> None:
    for rank in range(2):
        world = World(rank=rank, local_rank=rank, world_size=2, local_world_size=2, device=torch.device("cpu"))
        with Profile(2, tmp_path / "run", world) as profile:
            for _ in range(SKIPPED + 4):
                with ranges.span("wait"), ranges.span("copy"):
                    torch.ones(8).sum()
                for name in ("forward", "backward", "step"):
                    with ranges.span(name):
                        torch.ones(8).sum()
                with ranges.span("copy"):  # of a validation: in the trace, not in the table
                    time.sleep(0.05)
                profile.stepped()
        found = ranges_of(tmp_path / "run" / f"trace-rank-{rank}.json.gz")
        assert {name: len(events) for name, events in found.items()} == dict.fromkeys(NAMES, 2) | {"copy": 4}
        assert float(profile.lines()[2].split()[1]) < 25
        assert profile.lines()[0].startswith(f"profile           {tmp_path}/run/trace-rank-{rank}.json.gz: 2 steps;")


def test_without_a_profiler_a_range_is_nothing() -> None:
    assert ranges.span("wait") is ranges.span("copy") is ranges.NOTHING
    seen: list[str] = []
    with ranges.opened_by(lambda name: seen.append(name) or ranges.NOTHING):
        ranges.span("wait")
    assert ranges.span("step") is ranges.NOTHING
    assert seen == ["wait"]
