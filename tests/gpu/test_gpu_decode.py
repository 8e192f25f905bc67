"""The GPU's JPEG decoders compared with the CPU's on each kind of image, under load; and the decoder that was used.

nvJPEG's hardware engine is reported to ignore its stream on H100 and to overwrite memory in use (torchcodec 1634,
torchvision 9606). So the tests keep the device busy and repeat epochs. nvImageCodec's issue 55 reports a crash when
regions are decoded, so those tests run in their own processes.
"""

import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.pipeline.decoders_used import decoders_used
from penstock.pipeline.loader import DaliLoader
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from tests.common.images import picture
from tests.gpu.decoding import in_a_process, levels, validation

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ON_GPU = {"nvjpeg_hw_decoder", "nvjpeg_cuda_decoder"}
FACTORS = (0x11, 0x12, 0x21, 0x22)  # horizontal and vertical, four bits each


@pytest.fixture(scope="module")
def expected(kinds: ShardSet) -> torch.Tensor:
    loader = DaliLoader(validation(kinds), device=torch.device("cpu"), threads=2)
    images = levels(loader)
    loader.close()
    return images


def check(found: torch.Tensor, expected: torch.Tensor, kinds: ShardSet, mean: float = 1.0) -> None:
    """Check that images agree within the rounding of two inverse cosine transforms and colour conversions, by kind."""
    labels = torch.from_numpy(kinds.split("val").samples["label"].astype("int64"))
    difference = (found - expected).abs()
    for label, kind in enumerate(one.name for one in kinds.classes):
        of_kind = difference[labels == label]
        print(f"{kind}: mean {of_kind.mean():.3f}, largest pixel {of_kind.max():.1f} grey levels")
        assert of_kind.mean(dim=(1, 2, 3)).max() < mean, kind
        assert of_kind.max() < 16 * mean, kind


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65, 1.0])
def test_pixels_under_load(kinds: ShardSet, expected: torch.Tensor, hw_decoder_load: float) -> None:
    feed = validation(kinds, hw_decoder_load=hw_decoder_load, prefetch=4)
    loader = DaliLoader(feed, device=torch.device("cuda"), threads=4)
    first = levels(loader)
    check(first, expected, kinds)
    for epoch in range(5):
        assert torch.equal(levels(loader), first), f"epoch {epoch}: other pixels than before"
    loader.close()


@pytest.mark.parametrize("fancy", [True, False])
@pytest.mark.parametrize("gpu_decode", ["whole", "region"])
def test_pixels_of_either_way(
    kinds: ShardSet, kinds_dir: Path, expected: torch.Tensor, tmp_path: Path, gpu_decode: str, fancy: bool
) -> None:
    """Without fancy upsampling chroma of half resolution is repeated: edges of colour differ."""
    found, log = in_a_process(kinds_dir, tmp_path / "out.npy", gpu_decode=gpu_decode, fancy_upsampling=fancy)
    print(decoders_used(log))
    check(found, expected, kinds, mean=1 if fancy else 6)


@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65, 1.0])
def test_images_are_decoded_on_the_gpu(kinds_dir: Path, tmp_path: Path, hw_decoder_load: float) -> None:
    _, log = in_a_process(kinds_dir, tmp_path / "out.npy", hw_decoder_load=hw_decoder_load)
    used = decoders_used(log)
    print(dict(used))
    assert used.total() == 40
    assert set(used) <= ON_GPU, "an image fell back to the CPU"
    if "HW decoder not supported" in log or not hw_decoder_load:
        assert used["nvjpeg_hw_decoder"] == 0
    else:  # progressive images, a fifth, are beyond it
        assert used["nvjpeg_hw_decoder"] >= 0.5 * hw_decoder_load * 40


def test_gray_images_of_any_sampling_factor(tmp_path: Path) -> None:
    """nvJPEG's engine scrambles gray JPEGs with a factor other than 1×1, which means nothing there; the loader makes
    it 1×1 (`pipeline/gray.py`). Eight images of each factor, a class a factor."""
    for factor in FACTORS:
        folder, rng = tmp_path / "tree" / "val" / f"{factor:#x}", np.random.default_rng(6)
        folder.mkdir(parents=True)
        for i in range(8):
            stream = io.BytesIO()
            picture(240 + 37 * i, 411 - 26 * i, rng).convert("L").save(stream, "JPEG", quality=90)
            (folder / f"{i}.jpg").write_bytes(with_factor(stream.getvalue(), factor))
    shutil.copytree(tmp_path / "tree" / "val", tmp_path / "tree" / "train")
    with ThreadPoolExecutor(1) as executor:
        pack(tmp_path / "tree", tmp_path / "data", PackOptions(samples_per_shard=25), executor=executor)
    gray = ShardSet.open(tmp_path / "data")
    cpu = DaliLoader(validation(gray), device=torch.device("cpu"), threads=2)
    gpu = DaliLoader(validation(gray, hw_decoder_load=1.0), device=torch.device("cuda"), threads=4)
    check(levels(gpu), levels(cpu), gray)
    cpu.close()
    gpu.close()


def with_factor(jpeg: bytes, factor: int) -> bytes:
    """A gray JPEG with another sampling factor in its frame header: marker, length (2), bits, sides (4), components,
    the component's number, its factor."""
    start = jpeg.index(b"\xff\xc0")
    assert jpeg[start + 9] == 1
    return jpeg[: start + 11] + bytes([factor]) + jpeg[start + 12 :]


def test_threads_are_not_pinned_unasked(kinds: ShardSet) -> None:
    """When asked, they stay on the cores near the GPU: some of the process's, or all of them."""

    def allowed() -> dict[int, set[int]]:
        found = {}
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # one that has ended meanwhile
                found[int(task.name)] = os.sched_getaffinity(int(task.name))
        return found

    whole, before = os.sched_getaffinity(os.getpid()), set(allowed())
    for affinity in (False, True):
        loader = DaliLoader(validation(kinds, affinity=affinity), device=torch.device("cuda"), threads=4)
        next(loader.iter_epoch(0))
        own = {task: cpus for task, cpus in allowed().items() if task not in before}
        assert len(own) >= 4
        for cpus in own.values():
            assert cpus <= whole if affinity else cpus == whole
        loader.close()
        before |= set(own)
