"""Every augmentation in DALI against torchvision and Pillow with the same draws, and the plan's laws."""

import cmath
import colorsys
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.augment.auto import OP_ID
from penstock.pipeline.augment.graph import augment_images
from penstock.pipeline.augment.steps import step_arrays
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.reference import ReferenceLoader
from penstock.shards.format import ShardSet
from tests.common.augments import CASES, EVERYTHING
from tests.common.images import picture

CPU = torch.device("cpu")
SIZE = 40


def make_feed(
    shard_set: ShardSet, augment: AugmentConfig, batch_size: int = 24, rank: int = 0, world_size: int = 1, **data: Any
) -> Feed:
    return Feed(
        split=shard_set.split("train"),
        config=DataConfig(image_size=SIZE, **data),
        augment=augment,
        batch_size=batch_size,
        global_batch_size=24,
        rank=rank,
        world_size=world_size,
        seed=5,
    )


def images(loader: DaliLoader | ReferenceLoader, position: int = 0) -> dict[int, torch.Tensor]:
    """Position → image in grey levels."""
    std, mean = (torch.tensor(values)[:, None, None] for values in (loader.feed.config.std, loader.feed.config.mean))
    rows = {}
    for span, batch in zip(loader.feed.spans(position), loader.iter_epoch(1, position), strict=True):
        rows |= {span.start + i: image * std + mean for i, image in enumerate(batch.images)}
    loader.close()
    return rows


def test_every_augmentation_has_a_case() -> None:
    """`auto` has its own below, `repeats`, `mixup` and `cutmix` move whole images."""
    elsewhere = {"preset", "crop", "scale", "ratio", "pad", "hflip", "hflip_alternate"}
    elsewhere |= {"auto", "repeats", "mixup", "cutmix"}
    settings = {f.name for f in fields(AugmentConfig) if not f.name.startswith("auto_")}
    settings -= {
        f"{name}_{what}" for name in settings for what in ("sigma", "std", "amount", "quality", "ratio", "scale")
    }
    assert settings - elsewhere == {name for case, _, _ in CASES.values() for name in case} - {"crop"}


@pytest.mark.parametrize("case", CASES)
def test_dali_does_what_torchvision_does(dataset: ShardSet, case: str) -> None:
    settings, bound, bound_of_mean = CASES[case]
    feed = make_feed(dataset, AugmentConfig(**settings))
    plain = images(DaliLoader(make_feed(dataset, AugmentConfig()), device=CPU, threads=1))
    ours = images(DaliLoader(feed, device=CPU, threads=1))
    theirs = images(ReferenceLoader(feed, device=CPU, workers=0))
    differences = torch.stack([(ours[p] - theirs[p]).abs().mean() for p in ours])
    assert differences.max() <= bound
    assert differences.mean() <= bound_of_mean
    changed = sum(not torch.equal(ours[p], plain[p]) for p in ours)
    assert changed > len(ours) // 4, "an augmentation that does nothing agrees with everything"


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic", "lanczos"])
@pytest.mark.parametrize("antialias", [True, False])
def test_filters(dataset: ShardSet, interpolation: Any, antialias: bool) -> None:
    if not antialias and interpolation in ("cubic", "lanczos"):
        pytest.skip("no reference: torch has neither as Pillow has them")
    feed = make_feed(dataset, AugmentConfig(), interpolation=interpolation, antialias=antialias)
    ours = images(DaliLoader(feed, device=CPU, threads=1))
    theirs = images(ReferenceLoader(feed, device=CPU, workers=0))
    assert max(float((ours[p] - theirs[p]).abs().mean()) for p in ours) <= (0.5 if interpolation != "nearest" else 2)


def execute(pixels: np.ndarray, params: dict[str, np.ndarray], config: AugmentConfig) -> np.ndarray:
    """The steps of these parameters on (n, S, S, 3) uint8 images."""
    from nvidia.dali import Pipeline, fn

    arrays = step_arrays(params, config, pixels.shape[1])
    pipe = Pipeline(batch_size=len(pixels), num_threads=1, device_id=None)
    with pipe:
        nodes = fn.external_source(
            lambda: (list(pixels), *map(list, arrays.values())), num_outputs=1 + len(arrays), batch=True
        )
        pipe.set_outputs(augment_images(nodes[0], dict(zip(arrays, nodes[1:], strict=True)), DataConfig()))
    pipe.build()
    (output,) = pipe.run()
    return np.stack([np.asarray(output.at(i)) for i in range(len(pixels))])


AUTO_CASES = {
    **dict.fromkeys(["Identity", "Posterize", "Invert"], 0.0),
    **dict.fromkeys(["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"], 0.01),
    **dict.fromkeys(["Solarize", "AutoContrast"], 0.02),
    **dict.fromkeys(["Brightness", "Color", "Contrast"], 0.8),
    "Sharpness": 1.5,  # Pillow leaves the outermost pixels alone
    "Equalize": 10,  # OpenCV's formula
}
MAGNITUDES = {
    "Posterize": [2, 5, 8],
    "Solarize": [0, 100.4, 255],
    "Rotate": [-130, 15, 44],
    "TranslateX": [-31.7, 9, 0],
    "TranslateY": [13.5, -2, 31],
}


@pytest.mark.parametrize("name", OP_ID)
def test_operations_of_the_policies(name: str) -> None:
    rng = np.random.default_rng(1)
    pixels = np.stack([np.asarray(picture(64, 64, rng)) for _ in range(8)])
    op = np.array([OP_ID[name]] * 6 + [0, 0])[:, None]  # two stay as they are
    magnitude = np.array((MAGNITUDES.get(name, [-0.7, 0.3, 0.95]) * 3)[:8], np.float32)[:, None]
    ours = execute(pixels, {"auto_op": op, "auto_magnitude": magnitude}, AugmentConfig(auto="trivial"))
    theirs = [_apply_op(Image.fromarray(image), name, float(m), InterpolationMode.NEAREST, None)
              for image, m in zip(pixels[:6], magnitude[:6, 0], strict=True)]  # fmt: skip
    differences = [np.abs(a.astype(int) - np.asarray(b)).mean() for a, b in zip(ours[:6], theirs, strict=True)]
    assert max(differences) <= AUTO_CASES[name]
    assert np.array_equal(ours[6:], pixels[6:])


def test_hue_turns_the_chroma_plane_of_yiq() -> None:
    """Which torchvision's does not (it turns HSV's circle); the oracle is Python's `colorsys`, with two digits."""
    pixels = np.asarray(picture(24, 24, np.random.default_rng(2)).resize((24, 24))) // 2 + 64
    neutral = dict.fromkeys(["brightness", "contrast", "saturation"], np.ones(1))
    params = neutral | {"hue": np.full(1, 30.0), "anchor": np.zeros((1, 2))}
    ours = execute(pixels[None], params, AugmentConfig(hue=0.1))[0]
    expected = np.empty(ours.shape)
    for place in np.ndindex(24, 24):
        y, i, q = colorsys.rgb_to_yiq(*pixels[place] / 255)
        turned = complex(i, -q) * cmath.exp(1j * math.radians(30))
        expected[place] = colorsys.yiq_to_rgb(y, turned.real, -turned.imag)
    assert np.abs(ours - 255 * expected).max() <= 4
    assert np.abs(ours - pixels.astype(int)).mean() > 5


@pytest.mark.parametrize("auto", ["trivial", "rand", "autoaugment"])
def test_policies_in_the_loader(dataset: ShardSet, auto: Any) -> None:
    """A threshold after an operation whose definition differs may fall to the other side, so not the largest."""
    feed = make_feed(dataset, AugmentConfig(auto=auto, hflip=1))
    ours, theirs = images(DaliLoader(feed, device=CPU, threads=1)), images(ReferenceLoader(feed, device=CPU, workers=0))
    assert float(np.median([(ours[p] - theirs[p]).abs().mean() for p in ours])) <= 1


def test_an_augmentation_that_nobody_takes_changes_nothing(dataset: ShardSet) -> None:
    rare = dict.fromkeys(["grayscale", "blur", "noise", "salt_pepper", "jpeg", "erase"], 1e-9)
    plain, ours = (images(DaliLoader(make_feed(dataset, AugmentConfig(**rates)), device=CPU, threads=1))
                   for rates in ({}, rare))  # fmt: skip
    assert max(float((ours[p] - plain[p]).abs().max()) for p in plain) < 1e-3


@pytest.mark.parametrize(("world_size", "batch_size", "position"), [(1, 4, 0), (3, 4, 0), (2, 6, 24)])
def test_pixels_belong_to_positions_with_everything_on(
    dataset: ShardSet, world_size: int, batch_size: int, position: int
) -> None:
    """Laws 1 and 2: any batch size, world size, threads, and after a restart."""
    baseline = images(DaliLoader(make_feed(dataset, EVERYTHING), device=CPU, threads=1))
    rows: dict[int, torch.Tensor] = {}
    for rank in range(world_size):
        feed = make_feed(dataset, EVERYTHING, batch_size, rank, world_size)
        rows |= images(DaliLoader(feed, device=CPU, threads=2), position)
    assert rows.keys() == {p for p in baseline if p >= position}
    assert all(torch.equal(image, baseline[p]) for p, image in rows.items())


def test_repeats_bring_each_image_so_often_with_other_draws(dataset: ShardSet) -> None:
    feed = make_feed(dataset, AugmentConfig(repeats=3))
    ids = [feed.sample_ids(0, [span]).reshape(3, 8) for span in feed.spans(0)]
    assert all((batch == batch[0]).all() for batch in ids), "a global batch is the same run, three times"
    assert np.concatenate([batch[0] for batch in ids]).tolist() == feed.plan(0).sample_ids(0, 24).tolist()
    parts = [make_feed(dataset, AugmentConfig(repeats=3), 4, rank, 2) for rank in range(2)]
    rows = {span.start: part.sample_ids(0, [span]) for part in parts for span in part.spans(24)}
    assert (
        np.concatenate([rows[start] for start in sorted(rows)]).tolist()
        == np.concatenate([batch.ravel() for batch in ids[1:]]).tolist()
    )
    anchors = feed.batch(0, next(feed.spans(0)), SIZE).params["shape"].reshape(3, 8, 2)
    assert not np.array_equal(anchors[0], anchors[1])
    with pytest.raises(ValueError, match=r"augment\.repeats 5 does not divide train\.global_batch_size 24"):
        replace(feed, augment=AugmentConfig(repeats=5))
