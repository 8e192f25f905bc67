"""Datasets at gs:// URLs, on an emulator of Google Cloud Storage on loopback that fails some requests."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.pipeline.loader import DaliLoader
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from penstock.shards.remote import Store
from tests.common.packing import hashes
from tests.common.remote_feeds import epochs, feed_of, small

gcsfs = pytest.importorskip("gcsfs", reason="the client of gs:// is not installed (extra gs)")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="the emulator of gs:// is not installed")

URL = "gs://shards/set"


class Emulator:
    """fail: the share of requests that get 503. refuse: the status that each gets, if not 0."""

    def __init__(self) -> None:
        from gcp_storage_emulator.handlers import buckets
        from gcp_storage_emulator.storage import Storage

        self.fail, self.refuse, self.num_failed = 0.1, 0, 0
        self._lock, self._random = threading.Lock(), random.Random(0)
        storage = Storage(use_memory_fs=True)
        buckets.create_bucket("shards", storage)
        verbs = {f"do_{verb}": self._sometimes(f"do_{verb}") for verb in ("GET", "POST", "PUT")}
        handler = partial(type("Handler", (emulator.RequestHandler,), verbs), storage)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _sometimes(self, method: str) -> Callable[[Any], None]:
        def answer(handler: Any) -> None:
            with self._lock:  # the emulator is made for one request at a time
                failed = self._random.random() < self.fail
                self.num_failed += failed
                if not (failed or self.refuse):
                    getattr(emulator.RequestHandler, method)(handler)
                    return
            handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            handler.send_error(self.refuse or 503)

        return answer


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[Emulator]:
    server = Emulator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        yield server
    server.close()


def test_what_is_packed_there_is_what_a_disk_gets_and_reads_the_same(
    image_tree: Path, dataset: ShardSet, dataset_dir: Path, tmp_path: Path, running: Emulator
) -> None:
    with ThreadPoolExecutor(1) as executor:
        pack(image_tree, URL, PackOptions(samples_per_shard=25, staging=tmp_path / "stage"), executor=executor)
    (tmp_path / "back").mkdir()
    for name in Store(URL).files():
        (tmp_path / "back" / name).write_bytes(Store(URL).read(name))
    assert hashes(tmp_path / "back") == hashes(dataset_dir)
    remote_set = ShardSet.open(URL, tmp_path / "cache")
    assert remote_set.fingerprint == dataset.fingerprint
    for settings in ({}, {"order": "block"}, {"order": "block", "cache_bytes": small(remote_set)}):
        loaders = [
            DaliLoader(feed_of(of, tmp_path, **settings), device=torch.device("cpu"), threads=1)
            for of in (dataset, remote_set)
        ]
        expected, got = (epochs(loader, 2) for loader in loaders)
        assert got == expected
    assert running.num_failed > 3


def test_what_is_missing_refused_or_dead_is_said_in_a_line(
    tmp_path: Path, running: Emulator, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    running.fail = 0
    for url in ("gs://shards/none", "gs://nowhere/set"):
        with pytest.raises(ValueError, match=rf"{url}/dataset\.json: the file or bucket does not exist"):
            ShardSet.open(url, tmp_path)
    for running.refuse in (401, 403):
        with pytest.raises(ValueError, match=r"gs://shards/set/dataset\.json: no permission .*set the credentials"):
            ShardSet.open(URL, tmp_path, timeout_s=5)
    gcsfs.GCSFileSystem.clear_instance_cache()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"gs://shards/set/dataset\.json: the store has failed for 1 s"):
        ShardSet.open(URL, tmp_path, timeout_s=1)
    gcsfs.GCSFileSystem.clear_instance_cache()
    assert "Traceback" not in capfd.readouterr().err
