"""Datasets on a stand-in of the Hugging Face Hub on loopback: trained from, indexed, packed, refused."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from penstock.pipeline.reader import open_reader
from penstock.shard_tools.sources import remote
from penstock.shards.format import ShardSet
from tests.common import runs
from tests.common.hub_server import TOKEN, HubServer
from tests.common.packing import cli, hashes
from tests.common.remote_feeds import feed_of
from tests.common.source_images import WNIDS, jpeg, write_tar

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
    """At a revision, in a folder, with a request that fails; whole shards come once, or parts of them."""
    (tmp_path / "repo").mkdir()
    shutil.copytree(dataset_dir, tmp_path / "repo" / "packed")
    hub.repositories["me/set"] = {"v1": tmp_path / "repo"}
    more: dict[str, Any] = {"data__order": "block", "data__block_size": 4, "data__window_blocks": 2}
    more["data__store_timeout_s"] = 20
    shards = [info for split in dataset.splits.values() for info in split.shards]
    more |= {} if fits else {"data__cache_bytes": sum(info.bytes for info in shards) - 1}
    failing = iter([False] * 4 + [True] + [False] * 10_000)
    hub.fail = lambda path: 503 if path.endswith(".tar") and next(failing) else 0
    for name, data in (("disk", dataset_dir), ("hub", f"{URL}@v1/packed")):
        done = runs.run(data, tmp_path / name, "--max-steps", "5", **more)
        assert done.exit_code == 0, done.output
    for key in ("loss", "samples"):
        assert runs.by_step(tmp_path / "hub", key) == runs.by_step(tmp_path / "disk", key)
    assert 503 in {request.status for request in hub.requests}
    if fits:
        assert [len(hub.gets(info.file)) for info in shards] == [1] * len(shards)
    else:
        assert all(request.range for request in hub.gets(".tar"))
        assert sum(request.num_bytes for request in hub.gets(".tar")) <= sum(info.bytes for info in shards)
        assert list((tmp_path / "user" / "penstock" / "shards").glob("*.ranges"))


def imagenet_wds(root: Path, num_train: int = 3) -> Path:
    """The layout of timm/imagenet-1k-wds: numbered splits in the tars' names, jpg, cls and json of each sample."""
    for number in range(num_train + 1):
        split, digits = ("train", 4) if number < num_train else ("validation", 2)
        members = []
        for i in range(8):
            label = (number + i) % len(WNIDS)
            about = {"label": label, "filename": f"{WNIDS[label]}_{i}.JPEG", "width": 16, "height": 12}
            key, data = f"{split}{number}_{i:05d}", jpeg(100 * number + i)
            fields = {"cls": b"%d" % label, "jpg": data, "json": json.dumps(about).encode()}
            members += [(f"{key}.{field}", content) for field, content in fields.items()]
        write_tar(root / f"imagenet1k-{split}-{number % num_train:0{digits}d}.tar", members)
    (root / "_info.json").write_text("{}")
    (root / "README.md").write_text("tars")
    return root


def test_tars_on_the_hub_are_indexed_where_they_lie(hub: HubServer, tmp_path: Path) -> None:
    """The tables are those of the same tars on a disk, each tar is read once, and training reads the same bytes."""
    repo = imagenet_wds(tmp_path / "repo")
    hub.repositories["timm/tars"] = {"main": repo}
    local = shutil.copytree(repo, tmp_path / "local")
    url, out = "hf://datasets/timm/tars", tmp_path / "out"
    here, there = cli("index", local, "--workers", 1), cli("index", url, out, "--workers", 1)
    assert there.exit_code == 0, there.output
    assert f"shards at {url}" in there.output
    assert "tench" in there.output  # by the wnids in the samples' JSON
    assert here.output.count("\n") == there.output.count("\n") - 1
    for path in out.iterdir():
        if path.name != "dataset.json":
            assert path.read_bytes() == (local / path.name).read_bytes(), path.name
    assert {path.suffix for path in out.iterdir()} == {".json", ".idx", ".npy", ".txt"}
    assert all(len(hub.gets(path.name)) == 1 for path in repo.glob("*.tar"))
    sets = [ShardSet.open(root) for root in (local, out)]
    for split in ("train", "val"):
        readers = [open_reader(feed_of(of, tmp_path, split)) for of in sets]
        every = np.arange(len(sets[0].split(split)))
        disk, store = ([view.tobytes() for view in reader.views(every)] for reader in readers)
        assert disk == store
        readers[1].close()
    for command in (("verify", out), ("verify", out, "--fix"), ("preview", out, tmp_path / "x.png")):
        refused = cli(*command)
        assert refused.exit_code == 1
        assert f"its shards are at {url}, but this command reads local disks only" in refused.output


def test_an_index_goes_on_after_a_failure_and_bad_images(hub: HubServer, tmp_path: Path) -> None:
    """Files that were read are not read again, and the result equals that of an uninterrupted run."""
    repo = imagenet_wds(tmp_path / "repo")
    bad = repo / "imagenet1k-train-0001.tar"
    bad.write_bytes(bad.read_bytes().replace(jpeg(103), b"x" * len(jpeg(103))))
    hub.repositories["timm/tars"] = {"main": repo}
    url, out = "hf://datasets/timm/tars", tmp_path / "out"
    hub.fail = lambda path: 403 if "train-0002" in path else 0
    failed = cli("index", url, out, "--workers", 1)
    assert re.search(r"train-0002\.tar: no permission .*HF_TOKEN or run: hf auth login", failed.output)
    assert not (out / "dataset.json").exists()
    hub.fail = lambda path: 0
    assert "1 image(s)" in cli("index", url, out, "--workers", 1).output
    assert len(ShardSet.open(done_in(url, out)).split("train")) == 23
    # the last was perhaps under way when the one before it failed
    assert [len(hub.gets(path.name)) for path in sorted(repo.glob("*train*.tar"))] == [1, 1, 1]
    assert not (out / ".index").exists()
    again = tmp_path / "again"
    done_in(url, again)
    assert hashes(out) == hashes(again)


def done_in(url: str, out: Path) -> Path:
    done = cli("index", url, out, "--workers", 1, "--on-bad", "skip")
    assert done.exit_code == 0, done.output
    return out


def parquet_of_imagenet(root: Path) -> Path:
    """The layout of ILSVRC/imagenet-1k: data/SPLIT-00000-of-0000N.parquet, image {bytes, path}, label, -1 in test."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (root / "data").mkdir(parents=True)
    names = ["tench, Tinca tinca", "kit fox, Vulpes macrotis", "parachute, chute"]
    feature = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": feature}})}
    for split, count in {"train": 2, "validation": 1, "test": 1}.items():
        for number in range(count):
            rows = [{"bytes": jpeg(1000 * len(split) + 10 * number + i), "path": f"{i}.JPEG"} for i in range(6)]
            labels = [-1 if split == "test" else i % 3 for i in range(6)]
            table = arrow.table({"image": rows, "label": arrow.array(labels, arrow.int64())})
            file = root / "data" / f"{split}-{number:05d}-of-{count:05d}.parquet"
            pyarrow.parquet.write_table(table.replace_schema_metadata(note), file, row_group_size=2)
    (root / "README.md").write_text("about")
    return root


@pytest.mark.parametrize("make", [imagenet_wds, parquet_of_imagenet])
def test_what_is_packed_from_the_hub_is_what_is_packed_from_a_disk(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 500)  # of these files several
    repo = make(tmp_path / "repo")
    hub.repositories["me/set"] = {"main": repo}
    here, there = (cli("pack", source, tmp_path / out, "--workers", 1) for source, out in ((repo, "a"), (URL, "b")))
    assert there.exit_code == 0, there.output
    assert here.output.splitlines()[1:-1] == [
        line.replace(f"{tmp_path}/b", f"{tmp_path}/a").replace(URL, str(repo))
        for line in there.output.splitlines()[1:-1]
    ]
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_a_pack_goes_on_with_what_is_there(hub: HubServer, tmp_path: Path) -> None:
    repo = imagenet_wds(tmp_path / "repo")
    hub.repositories["me/set"] = {"main": repo}
    hub.fail = lambda path: 403 if "validation" in path else 0
    failed = cli("pack", URL, tmp_path / "out", "--workers", 1)
    assert re.search(r"me/set/imagenet1k-validation-00\.tar: no permission", failed.output)
    hub.fail = lambda path: 0
    assert cli("pack", URL, tmp_path / "out", "--workers", 1).exit_code == 0
    assert all(len(hub.gets(path.name)) == 1 for path in repo.glob("*.tar"))
    assert not (tmp_path / "out" / ".pack").exists()


def test_what_is_wrong_is_said_in_a_line(
    dataset_dir: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories |= {name: {"main": dataset_dir} for name in ("me/set", "me/private", "me/gated")}
    hub.private, hub.gated = {"me/private"}, {"me/gated"}
    login = "HF_TOKEN or run: hf auth login"
    told = {
        "hf://datasets/me/nope": f"the repository does not exist or is private.*{login}",
        "hf://datasets/me/private": f"the repository does not exist or is private.*{login}",
        "hf://datasets/me/gated": f"gated/dataset.json: access is restricted.*{login}",
        "hf://datasets/me/set@v9": "the revision does not exist; check the part of the URL after the @",
        "hf://datasets/me/set/folder": "folder/dataset.json: the file or bucket does not exist",
        "hf://datasets/me": "not a path on the Hub; write hf://datasets/OWNER/NAME",
        "hf://me/set": "not a path on the Hub; write hf://datasets/OWNER/NAME",
    }
    for url, line in told.items():
        refused = runs.run(url, tmp_path / "run", data__store_timeout_s=20)
        assert refused.exit_code == 1, url
        assert re.search(line, refused.output), refused.output
        assert refused.output.count("\n") == 1
        if url.count("/") > 3 and "folder" not in url and "gated" not in url:
            for command in (("index", url, tmp_path / "i"), ("pack", url, tmp_path / "p")):
                assert re.search(line, cli(*command).output)
    wrong = runs.run(URL, tmp_path / "run", data__val_split="nosuch")
    assert f"{URL}: no split 'nosuch' to validate on; it has train, val" in wrong.output
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("private", "gated"):
        assert cli("info", f"hf://datasets/me/{name}").exit_code == 0
    (tmp_path / "photos" / "class").mkdir(parents=True)
    (tmp_path / "photos" / "class" / "a.jpg").write_bytes(jpeg(0))
    upload = cli("pack", tmp_path / "photos", "hf://datasets/me/new")
    assert "hf upload me/new DIR --repo-type dataset" in upload.output
    assert "index URL OUT" in cli("index", URL).output.replace(URL, "URL")
    assert "omit" in cli("index", dataset_dir, tmp_path / "x").output
    assert "is a packed dataset and already has an index" in cli("index", URL, tmp_path / "x").output


def test_no_network_and_no_package_are_said_in_a_line(
    running: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": "http://127.0.0.1:9"})
    down = runs.run(URL, tmp_path / "run", data__store_timeout_s=1)
    assert re.search(r"the store has failed for 1 s .*ConnectError.*check that it is up and reachable", down.output)
    assert down.output.count("\n") == 1
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(vars(sys.modules["fsspec.registry"])["_registry"], "hf")  # which has its file system
    assert "pip install huggingface-hub" in runs.run(URL, tmp_path / "run").output
