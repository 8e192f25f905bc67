"""Datasets on the Hugging Face Hub, against a stand-in of it on loopback: trained from, indexed, packed, refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from penstock.shards.format import ShardSet
from tests.common import runs
from tests.common.hub_server import HubServer

constants = pytest.importorskip("huggingface_hub.constants", reason="the Hub's client is not installed (extra hf)")
URL = "hf://datasets/me/set"


@pytest.fixture(scope="module")
def running() -> Iterator[HubServer]:
    server = HubServer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.endpoint)  # of processes that are started
        patch.setitem(fsspec.config.conf, "hf", {"endpoint": server.endpoint})  # of this one
        yield server
    server.close()


@pytest.fixture
def hub(running: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    running.repositories.clear()
    running.requests.clear()
    running.private, running.gated, running.fail = set(), set(), lambda path: 0
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return running


@pytest.mark.parametrize("fits", [True, False])
def test_a_run_from_the_hub_is_that_from_a_disk_to_the_bit(
    dataset: ShardSet, dataset_dir: Path, hub: HubServer, tmp_path: Path, fits: bool
) -> None:
    (tmp_path / "repo").mkdir()
    shutil.copytree(dataset_dir, tmp_path / "repo" / "packed")
    hub.repositories["me/set"] = {"v1": tmp_path / "repo"}
    more: dict[str, Any] = {
        "data__order": "block",
        "data__block_size": 4,
        "data__window_blocks": 2,
        "data__store_timeout_s": 20,
    }
    more |= {} if fits else {"data__cache_bytes": small_of(dataset)}
    failing = iter([False] * 4 + [True] + [False] * 10_000)
    hub.fail = lambda path: 503 if path.endswith(".tar") and next(failing) else 0
    for name, data in (("disk", str(dataset_dir)), ("hub", f"{URL}@v1/packed")):
        done = runs.run(Path(data) if name == "disk" else data, tmp_path / name, "--max-steps", "9", **more)
        assert done.exit_code == 0, done.output
    for key in ("loss", "samples"):
        assert runs.by_step(tmp_path / "hub", key) == runs.by_step(tmp_path / "disk", key)
    assert 503 in {request.status for request in hub.requests}
    ranges = [request for request in hub.gets(".tar") if request.range]
    if fits:
        files = [info.file for split in dataset.splits.values() for info in split.shards]
        assert [len(hub.gets(file)) for file in files] == [1] * len(files)
    assert ranges


def small_of(dataset: ShardSet) -> int:
    return sum(info.bytes for split in dataset.splits.values() for info in split.shards) - 1
