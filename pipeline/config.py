"""The `[data]` section of a recipe: which shards, in which order, at which size."""

from dataclasses import dataclass
from typing import Literal

from penstock.pipeline.plan import Order
from penstock.settings import check, setting, settings_of

Interpolation = Literal["nearest", "linear", "cubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How batches are made."""

    path: str = setting("", "A packed dataset's directory or URL; `--data` sets it.", free_on_resume=True)
    loader: Literal["dali", "reference", "synthetic"] = setting(
        "dali",
        'What makes the batches: "dali", or "reference" (torchvision and PIL, the same plan), or "synthetic" (one '
        "random batch, repeated).",
    )
    train_split: str = setting("train", "The split that is trained on, a name in dataset.json.")
    val_split: str = setting("val", "The split that is validated on, a name in dataset.json.")
    test_split: str = setting("", "One more split, scored once, at the end; empty for none.", free_on_resume=True)
    image_size: int = setting(224, "Pixels, the side of a training image.", at_least=1)
    val_image_size: int = setting(
        224,
        "Pixels, the side of a validation image, cut out of the centre of what `val_resize_size` gives.",
        at_least=1,
    )
    val_resize_size: int = setting(256, "Pixels to which validation resizes an image's shorter side.", at_least=1)
    order: Order = setting(
        "global",
        'The order of an epoch\'s samples: "global" is a permutation of all; "block", for disks and object stores, '
        'shuffles blocks of consecutive ones and what is in a window of blocks; "sequential" is the order of the '
        "shards.",
    )
    block_size: int = setting(256, 'Samples of a block, of `order = "block"`.', at_least=1)
    window_blocks: int = setting(16, 'Blocks of a window, of `order = "block"`.', at_least=1)
    threads: int = setting(
        0,
        "Decode threads a rank; 0 takes the cores this process may use, divided by the ranks on this machine.",
        at_least=0,
        only_speed=True,
    )
    prefetch: int = setting(2, "Batches decoded ahead.", at_least=1, only_speed=True)
    read_ahead: int = setting(
        4,
        "Batches asked of the kernel before they are decoded, 0 for none; in `block` order a window at a time is.",
        at_least=0,
        only_speed=True,
    )
    interpolation: Interpolation = setting("linear", "The filter of every resize.")
    antialias: bool = setting(True, "Stretch the filter where an image shrinks, as Pillow does.")
    mean: tuple[float, float, float] = setting(
        (123.675, 116.28, 103.53),
        "Of each channel, RGB, in grey levels 0 … 255 (ImageNet's by default): images are (pixel − mean) / std. "
        "This is the one unit, in recipes, checkpoints and exports. Others write shares of 1: 0.485 is 123.675 here.",
    )
    std: tuple[float, float, float] = setting(
        (58.395, 57.12, 57.375), "Of each channel, RGB, in grey levels as `mean`.", above=0
    )
    cache: Literal["none", "encoded", "pixels"] = setting(
        "none",
        '"encoded" reads the shards into memory when the run starts, once a rank: for a slow or shared disk and a set '
        'that fits. "pixels" keeps each image as it comes out of the decoder, so that later epochs decode nothing: for '
        "small images; an image takes height × width × 3 bytes, once for the ranks of a machine, and on a GPU with "
        "room for all of them also there. The batches are the same, to the bit on a CPU; on a GPU too the CPU decodes. "
        "An image that is cut off is bad then whichever crop is planned.",
        free_on_resume=True,
    )
    cache_dir: str = setting(
        "",
        "Where the shards of a URL are kept, a local disk; empty for $XDG_CACHE_HOME/penstock, ~/.cache/penstock. "
        "Ranks and runs share it.",
        free_on_resume=True,
    )
    cache_bytes: int = setting(
        0,
        'The bound of what `cache_dir` holds, and of what `cache = "pixels"` does; 0 for nine tenths of what the disk, '
        "or the memory, has free.",
        at_least=0,
        free_on_resume=True,
    )
    fetch_bytes: int = setting(
        8 << 20,
        "How much is fetched of a URL at a time where the cache does not hold the whole dataset "
        '(`order = "block"` only).',
        at_least=1,
        free_on_resume=True,
    )
    fetch_threads: int = setting(16, "Threads that fetch from a URL.", at_least=1, free_on_resume=True)
    store_timeout_s: float = setting(
        60.0, "A store that has failed for so many seconds ends the run.", above=0, free_on_resume=True
    )
    affinity: bool = setting(
        False,
        "On the GPU, keep the decode threads on the cores near it (DALI's `set_affinity`, and `affine` of its "
        "decoder), or each on the one that the environment variable DALI_AFFINITY_MASK names for it.",
        only_speed=True,
    )
    hw_decoder_load: float = setting(
        0.65,
        "Share of a batch given to the GPU's JPEG engines, 0 to 1; it matters on the GPU only. Between 0 and 1 which "
        "images they take is chance; under `--deterministic` they then take all that they can.",
        at_least=0,
        at_most=1,
        only_speed=True,
    )
    gpu_decode: Literal["whole", "region", "off"] = setting(
        "whole",
        'On the GPU, "whole" decodes the image and cuts the crop out on the device; "region" has the decoder decode '
        "no more than the crop. Whole, since with fancy_upsampling the GPU's decoders refuse a region before nvJPEG "
        "13.2, which leaves it to the CPU, and a region is reported to crash on H100 (nvImageCodec's issue 55). "
        '"off" leaves decoding, crops and flips to the CPU\'s cores: faster for images of 32 px, and perhaps where the '
        "GPU has no JPEG engines.",
        free_on_resume=True,
    )
    fancy_upsampling: bool = setting(
        True, "On the GPU, interpolate chroma of half resolution, as the CPU does, instead of repeating it."
    )
    max_bad_fraction: float = setting(
        0.001,
        "The run stops when more than this share of the training split cannot be decoded; one bad sample is always "
        "tolerated.",
        at_least=0,
        at_most=1,
        free_on_resume=True,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.val_resize_size < self.val_image_size:
            raise ValueError(
                f"val_resize_size: {self.val_resize_size} must be at least val_image_size {self.val_image_size}"
            )

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


ONLY_SPEED = tuple(name for name, about in settings_of(DataConfig).items() if about.only_speed)
