"""The `[data]` section of a recipe: which shards, in which order, at which size."""

from dataclasses import dataclass
from typing import Literal

from pipeline.plan import Order

Interpolation = Literal["nearest", "linear", "cubic", "lanczos"]
ONLY_SPEED = ("threads", "prefetch", "read_ahead", "hw_decoder_load", "affinity")  # that they change, never the result


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How batches are made.

    path: a packed dataset's directory; `--data` sets it.
    loader: "dali", or "reference" (torchvision and PIL, the same plan), or "synthetic" (one random batch, repeated).
    train_split, val_split: names in dataset.json. test_split: one more, scored once, at the end; empty for none.
    image_size: pixels, the side of a training image. val_image_size, val_resize_size: validation resizes the shorter
        side to val_resize_size and crops the centre val_image_size.
    order: of an epoch's samples: "global" is a permutation of all; "block", for disks and object stores, shuffles
        blocks of consecutive ones and what is in a window of blocks; "sequential" is the order of the shards.
    block_size, window_blocks: samples of a block, blocks of a window; of `order = "block"`.
    threads: decode threads a rank; 0 takes the cores this process may use, divided by the ranks on this machine.
    prefetch: batches decoded ahead. read_ahead: batches asked of the kernel before they are decoded, 0 for none; in
        `block` order a window at a time is.
    interpolation, antialias: the filter of every resize; antialias stretches it where an image shrinks, as Pillow does.
    mean, std: of each channel, RGB, in grey levels 0 … 255 (ImageNet's by default): images are (pixel − mean) / std.
        This is the one unit, in recipes, checkpoints and exports. Others write shares of 1: 0.485 is 123.675 here.
    cache: "encoded" reads the shards into memory when the run starts, once a rank: for a slow or shared disk and a set
        that fits. More is not offered: decoded, an image takes ten times the bytes, and each crop is used once.
    affinity: on the GPU, keep the decode threads on the cores near it (DALI's `set_affinity`, and `affine` of its
        decoder), or each on the one that the environment variable DALI_AFFINITY_MASK names for it.
    hw_decoder_load: share of a batch given to the GPU's JPEG engines, 0 to 1; it matters on the GPU only. Between 0
        and 1 which images they take is chance; under `--deterministic` they then take all that they can.
    gpu_decode: on the GPU, "whole" decodes the image and cuts the crop out on the device; "region" has the decoder
        decode no more than the crop. Whole, since with fancy_upsampling the GPU's decoders refuse a region before
        nvJPEG 13.2, which leaves it to the CPU, and a region is reported to crash on H100 (nvImageCodec's issue 55).
        "off" leaves decoding, crops and flips to the CPU's cores: faster for images of 32 px, and perhaps where the
        GPU has no JPEG engines.
    fancy_upsampling: on the GPU, interpolate chroma of half resolution, as the CPU does, instead of repeating it.
    cache_dir: where the shards of a URL are kept, a local disk; empty for $XDG_CACHE_HOME/penstock, ~/.cache/penstock.
        Ranks and runs share it. cache_bytes: its bound; 0 for nine tenths of what the disk has free.
    fetch_bytes, fetch_threads: how much is fetched of a URL at a time where the cache does not hold the whole dataset
        (`order = "block"` only), and by how many threads.
    store_timeout_s: a store that has failed for so long ends the run.
    max_bad_fraction: the run stops when more than this share of the training split cannot be decoded; one bad sample
        is always tolerated.
    """

    path: str = ""
    loader: Literal["dali", "reference", "synthetic"] = "dali"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = ""
    image_size: int = 224
    val_image_size: int = 224
    val_resize_size: int = 256
    order: Order = "global"
    block_size: int = 256
    window_blocks: int = 16
    threads: int = 0
    prefetch: int = 2
    read_ahead: int = 4
    interpolation: Interpolation = "linear"
    antialias: bool = True
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    cache: Literal["none", "encoded"] = "none"
    cache_dir: str = ""
    cache_bytes: int = 0
    fetch_bytes: int = 8 << 20
    fetch_threads: int = 16
    store_timeout_s: float = 60.0
    affinity: bool = False
    hw_decoder_load: float = 0.65
    gpu_decode: Literal["whole", "region", "off"] = "whole"
    fancy_upsampling: bool = True
    max_bad_fraction: float = 0.001

    def __post_init__(self) -> None:
        for name in ("image_size", "val_image_size", "val_resize_size", "block_size", "window_blocks", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("fetch_bytes", "fetch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.store_timeout_s <= 0:
            raise ValueError(f"store_timeout_s: {self.store_timeout_s} must be above 0")
        for name in ("threads", "read_ahead", "cache_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be 0 or more")
        if self.val_resize_size < self.val_image_size:
            raise ValueError(
                f"val_resize_size: {self.val_resize_size} must be at least val_image_size {self.val_image_size}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std: {self.std} must be above 0")
        for name in ("hw_decoder_load", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} must lie in 0 to 1")

    def check_given(self) -> None:
        """Raises ValueError for a mean and a std that can only be meant in another unit, with these in grey levels.

        `recipes.config` asks where somebody gives the values, not where it reads back what a run was trained with.
        """
        given = {"mean": self.mean, "std": self.std}
        levels = {
            name: [round(255 * value, 4) if self._is_share(name, value) else value for value in values]
            for name, values in given.items()
        }
        wrong = [name for name, values in given.items() if levels[name] != list(values)]
        if wrong:
            raise ValueError(
                f"{', '.join(f'{name}: {list(given[name])}' for name in wrong)}: cannot be in grey levels, which reach "
                f"from 0 to 255; 255 times that is {', '.join(f'{name} = {levels[name]}' for name in wrong)}"
            )
        for name, low in (("mean", 0), ("std", 1)):
            if not all(low <= value <= 255 for value in given[name]):
                raise ValueError(f"{name}: {list(given[name])} must be in grey levels, {low} to 255")

    def _is_share(self, name: str, value: float) -> bool:
        """Whether this value of mean or std can only be a share of 1. A std of 1 may be a grey level's beside a mean
        that is in grey levels (Caffe's networks had it so)."""
        if name == "mean":
            return value > 0 and max(self.mean) <= 1
        return 0 < value < 1 or (max(self.std) <= 1 and max(self.mean) <= 1)
