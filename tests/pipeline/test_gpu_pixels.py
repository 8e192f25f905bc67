"""The pixels of the GPU branch without a GPU: `DaliLoader` with DALI's operators runs on the CPU.

It is compared, sample by sample, with the compiled kernel, torchvision and Pillow. The plan's laws are checked too. The
two branches differ by more than rounding in these known cases:
- A filter reaches beyond the crop: DALI's operators repeat the last pixel, the kernel and Pillow ignore it.
- Nearest neighbour at a tie: DALI's float32 coordinates fall to the other side of a whole number.
Otherwise they are at most one level apart, or two for the wider filters.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from penstock.pipeline import loader as loader_module
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.augment.graph import OPERATIONS
from penstock.pipeline.augment.params import StepArray
from penstock.pipeline.feed import Feed
from penstock.pipeline.gray import with_unit_factor
from penstock.pipeline.holes import IGNORE_LABEL, NO_SAMPLE, BadSample
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.reference import ReferenceLoader
from penstock.shards.format import ShardSet
from tests.common.augments import EVERYTHING
from tests.common.feeds import CPU, SIZE, by_position, gray_levels, make_feed, make_loader, same_rows
from tests.common.mortal import mortal, mortal_inputs

__all__ = ["mortal_inputs"]  # a fixture

Rows = dict[int, tuple[int, int, torch.Tensor]]
RADIUS = {"nearest": 0.5, "linear": 1.0, "cubic": 2.0, "lanczos": 3.0}  # of the filter, in pixels

CROPS: dict[str, AugmentConfig | None] = {
    "random resized": AugmentConfig(),
    "a few pixels": AugmentConfig(scale=(0.0005, 0.01)),
    "centre": AugmentConfig(crop="centre", vflip=0.5),
    "pad": AugmentConfig(crop="pad"),
    "pad far, both flips": AugmentConfig(crop="pad", pad=SIZE - 5, vflip=0.5),
    "validation": None,
}
ANY_FILTER = ("random resized", "pad", "validation")  # the other crops have two filters, to save time
CASES = [
    (crop, interpolation, antialias)
    for crop in CROPS
    for interpolation in RADIUS
    for antialias in (True, False)
    if crop in ANY_FILTER or (antialias and interpolation in ("nearest", "linear"))
]
# settings → bounds in grey levels: how far an image may be from the kernel's, and the median image from the reference's
# (whose definitions may differ: docs/augmentations.md). A level of difference before JPEG, a threshold or equalizing
# grows; the median image of the others is within 0.016 of the kernel's.
AUGMENTS: dict[str, tuple[dict[str, Any], float, float]] = {
    "jitter": ({"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}, 0.1, 1.6),
    "hue": ({"hue": 0.1}, 0.1, 15),
    "lighting, gray": ({"lighting": 0.1, "grayscale": 0.3}, 0.1, 0.3),
    "rotation": ({"rotation": 30}, 0.1, 0.6),
    "noise": ({"noise": 1}, 0.1, 0.3),
    "salt and pepper": ({"salt_pepper": 1}, 0.1, 0.3),
    "blur": ({"blur": 1}, 0.1, 0.3),
    "jpeg": ({"jpeg": 1}, 1.0, 1.5),
    "erase": ({"erase": 1}, 0.1, 0.3),
    "trivial": ({"auto": "trivial"}, 2.0, 0.5),
    "rand": ({"auto": "rand"}, 2.0, 0.5),
    "autoaugment": ({"auto": "autoaugment"}, 2.0, 1.0),
}


def as_on_the_gpu(patch: pytest.MonkeyPatch) -> None:
    """Make graphs from DALI's operators from now on, as for the GPU."""
    patch.setattr("penstock.pipeline.graph.in_one_pass", lambda on_gpu: False)
    patch.setattr("penstock.pipeline.augment.graph.has_kernels", lambda images: False)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_the_gpu(monkeypatch)


def images(loader: DaliLoader | ReferenceLoader) -> torch.Tensor:
    """Epoch 1 in grey levels: (n, 3, S, S)."""
    found = torch.cat([gray_levels(batch.images, loader.feed.config) for batch in loader.iter_epoch(1)])
    loader.close()
    return found


def by_operators(feed: Feed, **loader: Any) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        as_on_the_gpu(patch)
        return images(DaliLoader(feed, device=CPU, threads=2, **loader))


def by_kernel(feed: Feed) -> torch.Tensor:
    return images(DaliLoader(feed, device=CPU, threads=2))


def settled(feed: Feed) -> torch.Tensor:
    """(n, S, S) bool: where both branches read the same pixels with the same weights (see the module's docstring)."""
    masks = []
    for span in feed.spans(0):
        params = feed.batch(1, span, SIZE).params
        for i in range(span.count):
            masks.append(np.outer(*(_settled({k: v[i] for k, v in params.items()}, feed, axis) for axis in (0, 1))))
    return torch.from_numpy(np.stack(masks))


def _settled(params: dict[str, np.ndarray], feed: Feed, axis: int) -> np.ndarray:
    """(S,) bool, along rows or columns."""
    side = int(params["shape"][axis])
    start, end = (float(params[name][axis]) if name in params else value
                  for name, value in (("roi_start", 0), ("roi_end", side)))  # fmt: skip
    step = (end - start) / SIZE
    place = np.arange(SIZE) + (int(params["shift"][axis]) if "shift" in params else 0)
    centre = start + (place + 0.5) * step
    if feed.config.interpolation == "nearest":
        same = np.abs(centre - np.rint(centre)) > 1e-4
    else:
        reach = RADIUS[feed.config.interpolation] * (max(step, 1) if feed.config.antialias else 1)
        same = (centre - reach >= -0.5) & (centre + reach <= side + 0.5)
    same |= (place < 0) | (place >= SIZE)  # black
    flip = params.get(("flip_vertical", "mirror")[axis], 0)
    return same[::-1] if flip else same


def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean difference of each image."""
    return (a - b).abs().mean(dim=(1, 2, 3))


# --- pixels


@pytest.mark.parametrize(("crop", "interpolation", "antialias"), CASES)
def test_the_operators_make_the_kernels_and_torchvisions_pixels(
    dataset: ShardSet, crop: str, interpolation: Any, antialias: bool
) -> None:
    """The kernel's within a level where the two do the same (a nearest neighbour is the same pixel), and all of an
    image, as torchvision's, within what was seen at borders and ties."""
    feed = make_feed(dataset, augment=CROPS[crop], interpolation=interpolation, antialias=antialias)
    ours, theirs, inside = by_operators(feed), by_kernel(feed), settled(feed)
    difference = (ours - theirs).abs().amax(dim=1)
    assert difference[inside].max() < (0.01 if interpolation == "nearest" else 1.01)
    assert inside.float().mean() > 0.6
    assert apart(ours, theirs).max() < {"nearest": 0.8, "linear": 0.05, "cubic": 0.1, "lanczos": 0.25}[interpolation]
    if antialias or interpolation in ("nearest", "linear"):  # torch has no others
        differences = apart(ours, images(ReferenceLoader(feed, device=CPU, workers=0)))
        assert differences.median() < 0.3
        assert differences.max() < (0.9 if interpolation == "nearest" else 0.4)


def test_every_operation_has_a_case(dataset: ShardSet) -> None:
    feeds = [make_feed(dataset, augment=AugmentConfig(**settings)) for settings, _, _ in AUGMENTS.values()]
    names = {name for feed in feeds for name in feed.batch(1, next(feed.spans(0)), SIZE).params}
    assert {name.kind for name in names if isinstance(name, StepArray)} == set(OPERATIONS)


@pytest.mark.parametrize("case", AUGMENTS)
def test_augmentations_on_the_operators(dataset: ShardSet, case: str) -> None:
    settings, from_kernel, from_reference = AUGMENTS[case]
    feed = make_feed(dataset, augment=AugmentConfig(**settings))
    ours = by_operators(feed)
    differences = apart(ours, by_kernel(feed))
    assert differences.max() < from_kernel
    assert differences.median() < (0.2 if case == "jpeg" else 0.02)
    assert apart(ours, images(ReferenceLoader(feed, device=CPU, workers=0))).median() < from_reference


@pytest.mark.parametrize("augment", [CROPS["random resized"], None], ids=["training", "validation"])
def test_cutting_after_decoding_is_decoding_the_region(dataset: ShardSet, augment: AugmentConfig | None) -> None:
    whole, region = (by_operators(make_feed(dataset, augment=augment, gpu_decode=how)) for how in ("whole", "region"))
    assert torch.equal(whole, region)


def test_half_precision_on_the_operators(dataset: ShardSet) -> None:
    feed = make_feed(dataset)
    assert apart(by_operators(feed, dtype=torch.float16), by_operators(feed)).max() < 0.05


# --- laws


@pytest.fixture(scope="module")
def baseline(dataset: ShardSet) -> Rows:
    """Epoch 1 with everything on, one rank, batches of 24, one thread."""
    with pytest.MonkeyPatch.context() as patch:
        as_on_the_gpu(patch)
        loader = make_loader(dataset, augment=EVERYTHING, batch_size=24, threads=1)
        return by_position(loader.iter_epoch(1), loader.feed)


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    ("world_size", "batch_size", "threads", "position"), [(1, 8, 2, 0), (2, 6, 1, 24), (3, 8, 2, 48)]
)
def test_pixels_belong_to_positions(
    dataset: ShardSet, baseline: Rows, world_size: int, batch_size: int, threads: int, position: int
) -> None:
    """Laws 1 and 2: whatever the batch size, the threads and the world size, and after a restart in mid-epoch."""
    rows: Rows = {}
    for rank in range(world_size):
        loader = make_loader(
            dataset, augment=EVERYTHING, batch_size=batch_size, threads=threads, world_size=world_size, rank=rank
        )
        rows |= by_position(loader.iter_epoch(1, position), loader.feed, position)
        loader.close()
    assert same_rows(rows, {place: row for place, row in baseline.items() if place >= position})


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("kind", ["no header", "no pixels"])
def test_a_bad_sample_leaves_a_hole(
    dataset: ShardSet,
    dataset_copy: Path,
    baseline: Rows,
    damage: Callable[[ShardSet, str, int, bytes], None],
    kind: str,
) -> None:
    """Law 4: one that DALI may not see, and one whose pixels alone are missing, which a whole image always shows."""
    shard_set, split = ShardSet.open(dataset_copy), dataset.split("train")
    row = split.samples[baseline[30][0]]
    data = split.shard_path(int(row["shard"])).read_bytes()[int(row["offset"]) :][: int(row["size"])]
    damage(shard_set, "train", baseline[30][0], b"" if kind == "no header" else data[: len(data) * 4 // 5])
    reported: list[BadSample] = []
    feed = make_feed(shard_set, augment=EVERYTHING)
    loader = DaliLoader(feed, device=CPU, threads=2, on_bad=reported.append)
    rows = by_position(loader.iter_epoch(1), feed)
    loader.close()
    holes = {place for place, (sample_id, _, _) in baseline.items() if sample_id == baseline[30][0] and place in rows}
    assert 30 in holes
    assert {place for place in rows if rows[place][0] == NO_SAMPLE} == holes
    assert all(rows[place][:2] == (NO_SAMPLE, IGNORE_LABEL) for place in holes)
    kept = rows.keys() - holes
    assert same_rows({p: rows[p] for p in kept}, {p: baseline[p] for p in kept})
    assert {bad.sample_id for bad in reported} == {baseline[30][0]}


def test_the_operators_are_what_ran(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("penstock.pipeline.resize.resize", "penstock.pipeline.augment.graph._by_kernel"):
        monkeypatch.setattr(kernel, lambda *arguments, **settings: pytest.fail("a compiled kernel"))
    by_operators(make_feed(dataset, augment=EVERYTHING))


# --- what DALI reads without a copy


@pytest.mark.usefixtures("operators", "mortal_inputs")
@pytest.mark.parametrize("prefetch", [1, 8])
def test_inputs_live_until_they_are_read(dataset: ShardSet, baseline: Rows, prefetch: int) -> None:
    loader = make_loader(dataset, augment=EVERYTHING, batch_size=6, prefetch=prefetch)
    for _ in range(2):
        assert same_rows(by_position(loader.iter_epoch(1), loader.feed), baseline)
    loader.close()


@pytest.mark.usefixtures("operators")
def test_mended_gray_jpegs_live_until_they_are_read(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that a loader on a GPU makes (`pipeline/gray.py`), in two epochs; their pixels are the same."""
    feed = replace(make_feed(dataset, batch_size=6, prefetch=8), global_batch_size=30)  # none of the 90 is left out
    graph, expected, mended = loader_module.build_graph, by_operators(feed), list[int]()

    def mend(view: np.ndarray) -> np.ndarray:
        found = with_unit_factor(view)
        if found is view:
            return view
        mended.append(len(view))
        return mortal(found)

    monkeypatch.setattr(loader_module, "with_unit_factor", mend)
    monkeypatch.setattr(loader_module, "build_graph", lambda *args, **kw: graph(*args, **kw | {"gpu": None}))
    monkeypatch.setattr(DaliLoader, "_gpu", 0)
    loader = DaliLoader(feed, device=CPU, threads=2)
    assert torch.equal(images(loader), expected)
    assert torch.equal(images(loader), expected)
    assert len(mended) == 2 * 3  # two images, each found once and mended in both epochs


def test_inputs_of_the_gpu_live_until_it_has_made_their_batch(dataset: ShardSet) -> None:
    """However far ahead the CPU is: an event, recorded where the batch is handed over, says when."""
    loader, made = make_loader(dataset), [False] * 31
    waited: list[int] = []

    def event(batch: int) -> Any:
        return SimpleNamespace(query=lambda: made[batch], synchronize=lambda: waited.append(batch))

    for batch in range(30):
        loader._hold((batch,), event(batch))
    assert [inputs for _, inputs in loader._used] == [(batch,) for batch in range(30)]
    made[:20] = [True] * 20
    made[25] = True
    loader._hold((30,), event(30))
    assert [inputs for _, inputs in loader._used] == [(batch,) for batch in range(20, 31)]
    loader.close()
    assert waited == list(range(20, 31))
    assert not loader._used
