"""The `[data]` section of a recipe: which shards, in which order, at which size."""

from dataclasses import dataclass
from typing import Literal

from penstock.pipeline.plan import Order
from penstock.settings import check, setting, settings_of

Interpolation = Literal["nearest", "linear", "cubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards a run reads, in which order, and how it decodes them."""

    path: str = setting("", "Directory or URL of the packed dataset; `--data` sets it.", free_on_resume=True)
    loader: Literal["dali", "reference", "synthetic"] = setting(
        "dali",
        'The loader that makes the batches: "dali"; "reference", which executes the same plan with torchvision and '
        'PIL; or "synthetic", which repeats one random batch. "reference" runs on systems without DALI and is slower. '
        '"synthetic" shows how fast training is without a data pipeline.',
    )
    train_split: str = setting("train", "Name of the training split in dataset.json.")
    val_split: str = setting("val", "Name of the validation split in dataset.json.")
    test_split: str = setting(
        "", "Name of a third split that is scored once, at the end of the run; empty for none.", free_on_resume=True
    )
    image_size: int = setting(224, "Side of a training image, in pixels.", at_least=1)
    val_image_size: int = setting(
        224,
        "Side of a validation image, in pixels. Validation resizes an image to `val_resize_size` and crops its centre "
        "to this size.",
        at_least=1,
    )
    val_resize_size: int = setting(
        256,
        "Length to which validation resizes the shorter side of an image before the centre crop, in pixels.",
        at_least=1,
    )
    order: Order = setting(
        "global",
        'Order of the samples in an epoch: "global" shuffles all samples, "block" shuffles blocks of consecutive '
        'samples, "sequential" keeps the order of the shards. "block" reads large consecutive pieces, which suits '
        "disks and object stores. It shuffles the blocks, then the samples within each window of `window_blocks` "
        "blocks.",
    )
    block_size: int = setting(256, 'Samples in a block, for `order = "block"`.', at_least=1)
    window_blocks: int = setting(
        16,
        'Blocks in a window, for `order = "block"`. Samples are shuffled within a window, and one window is read '
        "ahead. Raise it for a slow parallel file system.",
        at_least=1,
    )
    threads: int = setting(
        0,
        "Decode threads of each rank; 0 divides the cores that this process may use by the number of ranks on this "
        "machine. The reference loader starts this many worker processes instead. `bench.py tune` measures which value "
        "is fastest.",
        at_least=0,
        only_speed=True,
    )
    prefetch: int = setting(
        2,
        "Batches that each rank decodes ahead. `bench.py tune` measures which value is fastest.",
        at_least=1,
        only_speed=True,
    )
    read_ahead: int = setting(
        4,
        "Number of batches that the operating system reads ahead of decoding; 0 for none. With "
        '`order = "block"`, any value above 0 reads one window ahead instead. `bench.py tune` measures which value is '
        "fastest.",
        at_least=0,
        only_speed=True,
    )
    interpolation: Interpolation = setting("linear", "Filter of every resize.")
    antialias: bool = setting(True, "Widen the filter when an image shrinks, as Pillow does.")
    mean: tuple[float, float, float] = setting(
        (123.675, 116.28, 103.53),
        "Mean of each channel (R, G, B), in grey levels 0 … 255. The default is ImageNet's. Images become (pixel − "
        "mean) / std. Recipes, checkpoints and exports all use grey levels. Other programs often use values from 0 to "
        "1: their 0.485 is 123.675 here.",
    )
    std: tuple[float, float, float] = setting(
        (58.395, 57.12, 57.375), "Standard deviation of each channel (R, G, B), in grey levels like `mean`.", above=0
    )
    cache: Literal["none", "encoded", "pixels"] = setting(
        "none",
        'What is kept in memory: "none", "encoded" (the shards) or "pixels" (the decoded images). "encoded" reads the '
        "shards into memory when the run starts, once for each rank. Use it for a slow or shared disk and a dataset "
        'that fits into memory. "pixels" keeps each image after its first decode, so later epochs decode nothing. Use '
        "it for small images. An image takes height × width × 3 bytes, once for all ranks of a machine. A GPU with "
        'room for all images also gets a copy. The batches do not change, to the bit on a CPU. With "pixels" the CPU '
        "decodes, even for a GPU, and the whole image must decode: a truncated image is always bad.",
        free_on_resume=True,
    )
    cache_dir: str = setting(
        "",
        "Directory on a local disk that keeps the shards of a URL; empty for $XDG_CACHE_HOME/penstock, or "
        "~/.cache/penstock. Ranks and runs share it.",
        free_on_resume=True,
    )
    cache_bytes: int = setting(
        0,
        'Largest size of `cache_dir`, and of the images that `cache = "pixels"` keeps, in bytes; 0 for nine tenths of '
        "the free disk space or memory.",
        at_least=0,
        free_on_resume=True,
    )
    fetch_bytes: int = setting(
        8 << 20,
        'Bytes of each request to a URL, when the cache cannot hold the whole dataset (`order = "block"` only).',
        at_least=1,
        free_on_resume=True,
    )
    fetch_threads: int = setting(16, "Threads of each rank that fetch from a URL.", at_least=1, free_on_resume=True)
    store_timeout_s: float = setting(
        60.0,
        "Seconds for which the loader retries failing requests to an object store before the run stops.",
        above=0,
        free_on_resume=True,
    )
    affinity: bool = setting(
        False,
        "On a GPU, keep the decode threads on the CPU cores near it. This sets DALI's `set_affinity` and its "
        "decoder's `affine`. The environment variable DALI_AFFINITY_MASK can name a core for each thread instead.",
        only_speed=True,
    )
    hw_decoder_load: float = setting(
        0.65,
        "Share of a batch that the GPU's JPEG engines decode, 0 to 1. It has an effect on GPUs only. Between 0 and 1, "
        "chance decides which images the engines decode, and the two decoders round differently. So with "
        "`--deterministic` the engines decode all images that they can. `bench.py tune` measures which value is "
        "fastest.",
        at_least=0,
        at_most=1,
        only_speed=True,
    )
    gpu_decode: Literal["whole", "region", "off"] = setting(
        "whole",
        'Where and how images are decoded for a GPU: "whole" decodes the whole image on the GPU and then crops it, '
        '"region" decodes only the crop on the GPU, and "off" decodes on the CPU. Prefer "whole" to "region". With '
        "fancy_upsampling, the GPU's decoders refuse regions before nvJPEG 13.2, so the CPU decodes them. Regions are "
        'also reported to crash on H100 (nvImageCodec\'s issue 55). "off" also crops, resizes and flips on the CPU. It '
        "is faster for images of 32 px. On a GPU without JPEG engines it may be faster, too (not measured).",
        free_on_resume=True,
    )
    fancy_upsampling: bool = setting(
        True,
        "On a GPU, interpolate chroma that is stored at half resolution, as the CPU does, instead of repeating it.",
    )
    max_bad_fraction: float = setting(
        0.001,
        "Largest share of the training split that may fail to decode before the run stops. One bad sample is always "
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
        """Raises ValueError if `mean` or `std` can only be in another unit. The message has them in grey levels.

        `recipes.config` calls this for values that a user gives, not for those that it reads back from a run.
        """
        given = {"mean": self.mean, "std": self.std}
        levels = {
            name: [round(255 * value, 4) if self._is_share(name, value) else value for value in values]
            for name, values in given.items()
        }
        wrong = [name for name, values in given.items() if levels[name] != list(values)]
        if wrong:
            raise ValueError(
                f"{', '.join(f'{name}: {list(given[name])}' for name in wrong)}: not in grey levels (0 to 255). "
                f"Multiply by 255: {', '.join(f'{name} = {levels[name]}' for name in wrong)}"
            )
        for name, low in (("mean", 0), ("std", 1)):
            if not all(low <= value <= 255 for value in given[name]):
                raise ValueError(f"{name}: {list(given[name])} must be in grey levels, {low} to 255")

    def _is_share(self, name: str, value: float) -> bool:
        """Whether this value of mean or std can only be a share of 1. A std of 1 may be in grey levels if the mean is
        (as with Caffe's networks)."""
        if name == "mean":
            return value > 0 and max(self.mean) <= 1
        return 0 < value < 1 or (max(self.std) <= 1 and max(self.mean) <= 1)


ONLY_SPEED = tuple(name for name, about in settings_of(DataConfig).items() if about.only_speed)
