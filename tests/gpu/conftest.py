"""Images of every kind that a JPEG decoder distinguishes, and work that keeps a GPU busy beside the loader."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from tests.common.images import picture

KINDS: dict[str, dict[str, object]] = {  # what PIL saves them with; the names' order is that of the labels
    "420": {"subsampling": 2},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0},
    "gray": {},
    "progressive": {"subsampling": 2, "progressive": True},
}


@pytest.fixture(scope="session")
def kinds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of each of `KINDS` in both splits, with odd and even sides; a class is a kind."""
    root, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(5)
    for split in ("train", "val"):
        for kind, settings in KINDS.items():
            folder = root / "tree" / split / kind
            folder.mkdir(parents=True)
            for i in range(8):
                image = picture(240 + 37 * i, 411 - 26 * i, rng)
                image = image.convert("L") if kind == "gray" else image
                image.save(folder / f"{i}.jpg", quality=90, **settings)
    with ThreadPoolExecutor(1) as executor:
        pack(root / "tree", root / "data", PackOptions(samples_per_shard=25), executor=executor)
    return root / "data"


@pytest.fixture(scope="session")
def kinds(kinds_dir: Path) -> ShardSet:
    return ShardSet.open(kinds_dir)


@pytest.fixture
def busy() -> Iterator[None]:
    """Keep the GPU busy with matrix products on a separate stream, beside memory that nothing may write."""
    stop, stream = threading.Event(), torch.cuda.Stream()
    kept = [torch.full((1 << 20,), i, device="cuda") for i in range(64)]  # int64, 8 MiB each

    def multiply() -> None:
        with torch.cuda.stream(stream):
            matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.half)
            while not stop.is_set():
                for _ in range(16):
                    matrix = torch.tanh(matrix @ matrix)
                stream.synchronize()

    thread = threading.Thread(target=multiply)
    thread.start()
    yield
    stop.set()
    thread.join()
    torch.cuda.synchronize()
    assert all(bool((values == i).all()) for i, values in enumerate(kept)), "somebody wrote to other people's memory"
