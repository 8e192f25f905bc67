"""Datasets at URLs on a real S3 server on loopback, with delays, failures, kills, wrong objects, a dead store."""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
import torch

from penstock.pipeline import window_reader
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.reader import ShardReader, open_reader
from penstock.pipeline.reference import ReferenceLoader
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards import remote
from penstock.shards.format import ShardSet
from penstock.shards.remote import Store
from tests.common import forked
from tests.common.packing import cli, hashes
from tests.common.remote_feeds import epochs, feed_of, small

pytest.importorskip("s3fs", reason="the S3 client is not installed (extra s3)")
pytest.importorskip("moto.server", reason="the S3 server for tests is not installed (moto[server])")
if TYPE_CHECKING:
    from tests.common.s3_server import S3Server

URL = "s3://shards/set"


@pytest.fixture(scope="module")
def running() -> Iterator["S3Server"]:
    from tests.common.s3_server import BUCKET, S3Server

    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield server
    server.close()


@pytest.fixture
def server(running: "S3Server") -> Iterator["S3Server"]:
    running.reset()
    yield running
    running.reset()


@pytest.fixture(scope="module")
def uploaded(running: "S3Server", dataset_dir: Path) -> None:
    for path in dataset_dir.iterdir():
        fsspec.filesystem("s3").pipe_file(f"{URL}/{path.name}", path.read_bytes(), ACL="public-read")


@pytest.fixture
def remote_set(uploaded: None, server: "S3Server", tmp_path: Path) -> ShardSet:
    shard_set = ShardSet.open(URL, tmp_path / "cache")
    server.requests.clear()
    return shard_set


@pytest.mark.parametrize(("order", "fits"), [("global", True), ("block", True), ("block", False)])
def test_nothing_is_lost_or_repeated_with_delays_and_failures(
    dataset: ShardSet,
    remote_set: ShardSet,
    server: "S3Server",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: Any,
    fits: bool,
) -> None:
    """Two epochs and validation give the batches of local shards; whole shards come once, ranges once an epoch."""
    monkeypatch.setattr(window_reader, "GAP_BYTES", 4096)  # these images are of 8 KB, not of 110
    monkeypatch.setattr(remote, "PART_BYTES", 10_000)  # many of a shard
    server.latency_s, server.fail, failed_before = 0.01, 0.05, server.num_failed
    settings = {"order": order, "cache_bytes": 0 if fits else small(remote_set)}
    for split, num in (("train", 2), ("val", 1)):
        server.requests.clear()
        loaders = [
            DaliLoader(feed_of(of, tmp_path, split, **settings), device=torch.device("cpu"), threads=1)
            for of in (dataset, remote_set)
        ]
        expected, got = (epochs(loader, num) for loader in loaders)
        assert got == expected
        assert len(got) == num * len(loaders[0])
        shards = [info.file for info in remote_set.split(split).shards]
        if fits:
            parts = [-(-info.bytes // 10_000) for info in remote_set.split(split).shards]
            assert max(parts) > 1
            assert [len(server.gets(file)) for file in shards] == parts
        else:
            served = sum(request.num_bytes for request in server.gets(".tar"))
            assert served <= num * sum(info.bytes for info in remote_set.split(split).shards)
    assert server.num_failed > failed_before + 2


def test_an_epoch_can_begin_anywhere_and_be_left(
    dataset: ShardSet, remote_set: ShardSet, server: "S3Server", tmp_path: Path
) -> None:
    loaders = [
        DaliLoader(feed_of(of, tmp_path, order="block", cache_bytes=small(remote_set)),
                   device=torch.device("cpu"), threads=1)
        for of in (dataset, remote_set)
    ]  # fmt: skip
    seen = []
    for loader in loaders:
        steps = zip(range(4), loader.iter_epoch(2, 9), strict=False)
        left = [batch.sample_ids.tolist() for _, batch in steps]
        seen.append(left + [batch.sample_ids.tolist() for batch in loader.iter_epoch(3, 60)])
        loader.close()
    assert seen[0] == seen[1]


READS = """
import json, sys, torch
from pathlib import Path
from penstock.pipeline.reference import ReferenceLoader
from penstock.shards.format import ShardSet
from tests.common.remote_feeds import epochs, feed_of
url, folder = sys.argv[1], Path(sys.argv[2])
feed = feed_of(ShardSet.open(url, folder / "cache"), folder, "val")
print(json.dumps(epochs(ReferenceLoader(feed, device=torch.device("cpu"), workers=1), 1)))
"""


def test_the_reference_loaders_workers_read_urls(dataset: ShardSet, remote_set: ShardSet, tmp_path: Path) -> None:
    """Runs in its own process, since the workers are forked and the server's threads do not always survive that."""
    done = forked.run(["-c", READS, URL, tmp_path], timeout=100)
    assert done.returncode == 0, done.stderr
    here = epochs(ReferenceLoader(feed_of(dataset, tmp_path, "val"), device=torch.device("cpu"), workers=0), 1)
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


RANK = """
import hashlib, json, sys
from pathlib import Path
from dataclasses import replace
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.reader import open_reader
from penstock.shards.format import ShardSet
url, cache_dir, share, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
config = DataConfig(cache_dir=cache_dir, order="block", block_size=4, window_blocks=2, fetch_bytes=40_000, **settings)
split = ShardSet.open(url, cache_dir).split("train")
feed = Feed(split=split, config=config, augment=AugmentConfig(), batch_size=3, **share)
reader = open_reader(feed)
reader.follow(feed.windows(0, 0))
print("ready", flush=True)
digests = {}
for batch in feed.batches(0, 0, 32):
    for sample_id, view in zip(batch.sample_ids.tolist(), reader.views(batch.sample_ids)):
        digests[sample_id] = hashlib.sha256(view).hexdigest()
print(json.dumps(digests))
"""


def rank(tmp_path: Path, cache: str, share: dict[str, int], **settings: Any) -> forked.Forked:
    """Start a process that reads its part of an epoch."""
    return forked.start(["-c", RANK, URL, tmp_path / cache, json.dumps(share), json.dumps(settings)])


def result(process: forked.Forked) -> dict[str, str]:
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    return dict(json.loads(output.splitlines()[-1]))


def digests(dataset: ShardSet) -> dict[str, str]:
    import hashlib

    views = ShardReader(dataset.split("train")).views(np.arange(len(dataset.split("train"))))
    return {str(i): hashlib.sha256(view).hexdigest() for i, view in enumerate(views)}


@pytest.mark.parametrize("fits", [True, False])
def test_ranks_of_a_machine_share_what_is_downloaded(
    dataset: ShardSet, remote_set: ShardSet, server: "S3Server", tmp_path: Path, fits: bool
) -> None:
    server.latency_s = 0.05  # so that they overlap
    settings = {} if fits else {"cache_bytes": small(remote_set)}
    share = {"global_batch_size": 6, "world_size": 2, "local_world_size": 2}
    ranks = [rank(tmp_path, "shared", share | {"rank": number}, **settings) for number in range(2)]
    assert result(ranks[0]) | result(ranks[1]) == digests(dataset)
    ranges = [(request.path, request.range) for request in server.gets(".tar")]
    assert len(ranges) == len(set(ranges))
    if fits:
        assert sorted(Path(path).name for path, _ in ranges) == [f"train-00000{i}.tar" for i in range(4)]
    tables = [request.path for request in server.gets(".npy")]
    assert len(tables) == len(set(tables))


def test_each_machine_downloads_its_part_of_the_windows(
    dataset: ShardSet, remote_set: ShardSet, server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traffic of two machines whose caches do not hold the dataset: half of the bytes each, none twice."""
    monkeypatch.setattr(window_reader, "GAP_BYTES", 4096)
    split, served = remote_set.split("train"), []
    for number in range(2):
        server.requests.clear()
        share: dict[str, Any] = {"rank": number, "world_size": 2, "local_world_size": 1}
        feed = feed_of(
            remote_set,
            tmp_path,
            order="block",
            cache_bytes=small(remote_set),
            cache_dir=str(tmp_path / f"{number}"),
            **share,
        )
        reader = open_reader(feed)
        reader.follow(feed.windows(0, 0))
        oracle = ShardReader(dataset.split("train"))
        own = []
        for batch in feed.batches(0, 0, 32):
            pairs = zip(reader.views(batch.sample_ids), oracle.views(batch.sample_ids), strict=True)
            assert all(np.array_equal(*pair) for pair in pairs)
            own += batch.sample_ids.tolist()
        reader.close()
        requests = server.gets(".tar")
        spans = sorted((r.path, *map(int, r.range.removeprefix("bytes=").split("-"))) for r in requests)
        assert all(a[0] != b[0] or a[2] < b[1] for a, b in pairwise(spans))
        needed = int(split.samples["size"][own].sum())
        served.append(sum(request.num_bytes for request in requests))
        assert needed <= served[-1] <= 1.25 * needed + 512 * len(own)
    assert max(served) < 0.7 * sum(info.bytes for info in split.shards)


def test_a_rank_killed_while_downloading_leaves_nothing_that_counts(
    dataset: ShardSet, remote_set: ShardSet, server: "S3Server", tmp_path: Path
) -> None:
    server.stall_s = 30
    share = {"global_batch_size": 3}
    process = rank(tmp_path, "cache", share)
    while "\n" not in process.output:
        assert process.poll() is None
        time.sleep(0.02)
    assert process.output == "ready\n"
    shards = tmp_path / "cache" / "shards"
    while not list(shards.glob(".*.part")):
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(shards.glob(".*.part"))
    assert not list(shards.glob("*.tar"))
    server.stall_s = 0
    assert result(rank(tmp_path, "cache", share)) == digests(dataset)
    assert not list(shards.glob(".*.part"))
    assert len(list(shards.glob("*.tar"))) == 4


def read_all(shard_set: ShardSet, tmp_path: Path, **settings: Any) -> None:
    feed = feed_of(shard_set, tmp_path, **settings)
    reader = open_reader(feed)
    try:
        reader.follow(feed.windows(0, 0))
        for batch in feed.batches(0, 0, 32):
            reader.views(batch.sample_ids)
    finally:
        reader.close()


@pytest.fixture
def changed(remote_set: ShardSet, dataset_dir: Path) -> Iterator[Callable[[bytes], None]]:
    """Replace the second shard in the store until the test ends."""
    path = dataset_dir / "train-000001.tar"
    filesystem = fsspec.filesystem("s3")
    yield lambda data: filesystem.pipe_file(f"{URL}/{path.name}", data)
    filesystem.pipe_file(f"{URL}/{path.name}", path.read_bytes(), ACL="public-read")


def test_an_object_that_is_not_what_was_packed_is_named(
    remote_set: ShardSet, server: "S3Server", tmp_path: Path, dataset_dir: Path, changed: Callable[[bytes], None]
) -> None:
    data = bytearray((dataset_dir / "train-000001.tar").read_bytes())
    data[5000] ^= 1
    changed(bytes(data))
    with pytest.raises(ValueError, match=r"s3://shards/set/train-000001\.tar: 3 downloads did not match the sha256"):
        read_all(remote_set, tmp_path, order="global")
    assert len(server.gets("train-000001.tar")) == 3
    changed(bytes(512) + bytes(data)[:-512])  # whose images lie elsewhere
    with pytest.raises(ValueError, match=r"s3://shards/set/train-000001\.tar: has no image at byte"):
        read_all(remote_set, tmp_path, order="block", cache_bytes=small(remote_set))
    changed(bytes(data)[:5000])
    with pytest.raises(ValueError, match=r"train-000001\.tar: the store has failed"):
        read_all(remote_set, tmp_path, order="global", store_timeout_s=1)


def test_a_store_that_dies_or_hangs_ends_the_epoch_in_bounded_time(
    dataset: ShardSet, remote_set: ShardSet, server: "S3Server", tmp_path: Path
) -> None:
    epochs(DaliLoader(feed_of(dataset, tmp_path), device=torch.device("cpu"), threads=1), 1)  # compiles, loads DALI
    for number, (trouble, value) in enumerate({"hang_s": 5.0, "refuse": lambda method, path: "SlowDown"}.items()):
        setattr(server, trouble, value)
        feed = feed_of(remote_set, tmp_path, order="block", store_timeout_s=1.2, cache_dir=str(tmp_path / f"{number}"))
        loader = DaliLoader(feed, device=torch.device("cpu"), threads=1)
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"s3://shards/set/train-.*: the store has failed for 1\.2 s") as error:
            epochs(loader, 1)
        assert time.monotonic() - start < 10
        assert "\n" not in str(error.value)
        loader.close()
        server.reset()


def test_what_is_missing_is_said_in_a_line(
    uploaded: None, server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"s3://nowhere/set/dataset\.json: the file or bucket does not exist"):
        ShardSet.open("s3://nowhere/set", tmp_path)
    with pytest.raises(ValueError, match=r"s3://shards/none/dataset\.json: the file or bucket does not exist"):
        ShardSet.open("s3://shards/none", tmp_path)
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/x/dataset\.json: the store has failed for 1 s"):
        ShardSet.open("http://127.0.0.1:9/x", tmp_path, timeout_s=1)
    import s3fs

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ValueError, match=r"no permission \(NoCredentialsError.*set the credentials"):
        ShardSet.open(URL, tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()


def test_http_reads_the_same(dataset: ShardSet, uploaded: None, server: "S3Server", tmp_path: Path) -> None:
    shard_set = ShardSet.open(f"{server.endpoint}/shards/set", tmp_path / "cache")
    assert shard_set.fingerprint == dataset.fingerprint
    for settings in ({}, {"order": "block", "cache_bytes": small(shard_set)}):
        read_all(shard_set, tmp_path, **settings)


def test_pack_to_a_url_goes_on_after_a_failure(
    image_tree: Path, dataset_dir: Path, server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same objects as the files of a local run; what was uploaded before the failure is not uploaded again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    url = "s3://shards/packed"

    def run(**settings: Any) -> Any:
        with ThreadPoolExecutor(1) as executor:
            return pack(
                image_tree,
                url,
                PackOptions(samples_per_shard=25, staging=tmp_path / "stage", **settings),
                executor=executor,
            )

    server.refuse = lambda method, path: "AccessDenied" if method == "PUT" and "train-000002" in path else ""
    with pytest.raises(ValueError, match=r"s3://shards/packed/train-000002\.tar: no permission"):
        run()
    assert "dataset.json" not in Store(url).files()
    assert not list((tmp_path / "stage").rglob("train-00000[01].tar"))  # moved, not copied
    server.reset()
    packed = run()
    uploads = [Path(r.path).name for r in server.requests if r.method == "PUT"]
    assert "train-000001.tar" not in uploads
    assert uploads[-1] == "dataset.json"
    assert packed.progress.kept_shards >= 2
    stored = {name: fsspec.filesystem("s3").cat_file(f"{url}/{name}") for name in Store(url).files()}
    (tmp_path / "back").mkdir()
    for name, data in stored.items():
        (tmp_path / "back" / name).write_bytes(data)
    assert hashes(tmp_path / "back") == hashes(dataset_dir)
    assert not list((tmp_path / "stage").rglob("*.*"))
    assert run().already_complete
    with pytest.raises(ValueError, match="holds another dataset"):
        run(seed=1)
    (tmp_path / "elsewhere").mkdir()
    fsspec.filesystem("s3").pipe_file("s3://shards/foreign/x", b"x")
    url = "s3://shards/foreign"
    with pytest.raises(ValueError, match=r"s3://shards/foreign: not empty \(it has x\)"):
        run()


def test_what_is_no_longer_at_the_url_is_packed_again(
    image_tree: Path, dataset_dir: Path, server: "S3Server", tmp_path: Path
) -> None:
    """What counts is what the store lists, whatever the local directory remembers of this URL or a like one."""

    def run(url: str) -> Any:
        with ThreadPoolExecutor(1) as executor:
            return pack(
                image_tree, url, PackOptions(samples_per_shard=25, staging=tmp_path / "stage"), executor=executor
            )

    def is_whole(url: str) -> bool:
        filesystem, expected = fsspec.filesystem("s3"), hashes(dataset_dir)
        return {
            name: hashlib.sha256(filesystem.cat_file(f"{url}/{name}")).hexdigest() for name in Store(url).files()
        } == expected

    first, alike = "s3://shards/again/x", "s3://shards/again_x"
    server.refuse = lambda method, path: "AccessDenied" if method == "PUT" and "train-000002" in path else ""
    with pytest.raises(ValueError, match="no permission"):
        run(first)
    server.reset()
    run(alike)
    assert is_whole(alike)
    assert Store(first).files()
    fsspec.filesystem("s3").rm(f"{first}/train-000000.tar")
    run(first)
    assert is_whole(first)
    assert run(first).already_complete
    fsspec.filesystem("s3").rm(f"{first}/train-000000.idx")
    with pytest.raises(
        ValueError, match=r"again/x/train-000000\.tar: is missing.*remove the dataset at the URL and pack again"
    ):
        run(first)
    fsspec.filesystem("s3").rm(first, recursive=True)
    run(first)
    assert is_whole(first)


def test_workers_that_do_not_share_the_store_are_noticed(image_tree: Path, tmp_path: Path) -> None:
    """Each process has its own memory:// store."""
    with pytest.raises(ValueError, match=r"memory://set/.*\.tar: is missing.*remove .* and pack again"):
        pack(image_tree, "memory://set", PackOptions(samples_per_shard=25, workers=2, staging=tmp_path))


@pytest.fixture
def plain_http(dataset_dir: Path) -> Iterator[tuple[str, type[SimpleHTTPRequestHandler]]]:
    """Python's own server, which does not support byte ranges."""

    class Handler(SimpleHTTPRequestHandler):
        length, lost = True, 0

        def log_message(self, *args: object) -> None: ...

        def parse_request(self) -> bool:
            if Handler.lost:  # the connection
                Handler.lost -= 1
                self.close_connection = True
                return False
            return super().parse_request()

        def send_header(self, name: str, value: str) -> None:
            if Handler.length or name != "Content-Length":
                super().send_header(name, value)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(dataset_dir)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


def test_a_server_without_ranges_gives_whole_shards_or_a_line(
    dataset: ShardSet, plain_http: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = plain_http
    handler.lost = 3  # connections, the first among them when a size is asked for
    shard_set = ShardSet.open(url, tmp_path / "cache", timeout_s=20)
    assert shard_set.fingerprint == dataset.fingerprint
    read_all(shard_set, tmp_path, order="global")
    started = time.monotonic()
    for folder, more in (("a", {"cache_bytes": small(shard_set)}), ("b", {})):
        monkeypatch.setattr(remote, "PART_BYTES", 5_000 if folder == "b" else remote.PART_BYTES)
        with pytest.raises(ValueError, match=r"train-.*\.tar: the server sends the whole file instead of a part"):
            read_all(shard_set, tmp_path, order="block", cache_dir=str(tmp_path / folder), **more)
    handler.length = False
    with pytest.raises(ValueError, match="does not send the file's size"):
        ShardSet.open(url, tmp_path / "c")
    assert time.monotonic() - started < 15  # nothing of it was tried for store_timeout_s
    with pytest.raises(ValueError, match="cannot have a query"):
        ShardSet.open(f"{url}?token=x", tmp_path)


def test_commands_read_urls_or_say_that_they_do_not(
    uploaded: None, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    info = cli("info", URL)
    assert info.exit_code == 0
    assert "s3://shards/set" in info.output
    for command in (("verify", URL), ("preview", URL, "x.png")):
        refused = cli(*command)
        assert refused.exit_code == 2
        assert "is a URL, but this command reads local disks only" in refused.output
    assert "is a packed dataset and already has an index" in cli("index", URL, tmp_path / "index").output
    for source, out in ((dataset_dir, "disk"), (URL, "store")):
        assert cli("pack", source, tmp_path / out, "--workers", 1, "--samples-per-shard", 40).exit_code == 0
    assert hashes(tmp_path / "store") == hashes(tmp_path / "disk")
    assert "is read-only" in cli("pack", tmp_path, "https://example.org/x").output
    assert "omit --staging" in cli("pack", tmp_path, tmp_path / "out", "--staging", tmp_path).output
