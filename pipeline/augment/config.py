"""The `[augment]` section of a recipe: settings of all augmentations, and the presets."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from penstock.settings import check, setting, settings_of

Auto = Literal["none", "trivial", "rand", "autoaugment"]
MAX_MAGNITUDE = 30  # RandAugment's magnitude counts 31 bins from 0, as in torchvision


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation, in the order in which it is applied. docs/augmentations.md shows each augmentation.

    A setting named like an augmentation (`blur`, `erase`, …) is the probability that an image gets it; 0 switches it
    off. A pair is the range of a uniform draw.
    """

    preset: Literal["none", "light", "medium", "strong"] = setting(
        "none",
        'Values for the settings that the recipe does not give: "none", "light", "medium" or "strong". Only a recipe '
        "fills them in. In Python this setting has no effect: write "
        '`AugmentConfig(**AugmentConfig.presets["light"])`.',
    )
    crop: Literal["random_resized", "centre", "pad"] = setting(
        "random_resized",
        'How the training image is cut out: "random_resized", "centre" or "pad". "random_resized" crops a random box, '
        'given by `scale` and `ratio`, and resizes it. "centre" resizes the shorter side to image_size / '
        'crop_fraction and crops the centre, as in validation. "pad" is for small images: it resizes the whole image '
        "to image_size and moves it by up to `pad` pixels up or down and left or right, with black borders "
        "(torchvision's `RandomCrop` with `padding`).",
    )
    scale: tuple[float, float] = setting(
        (0.08, 1.0),
        "Range of the random-resized crop's area, as a fraction of the image's area.",
        above=0,
        at_most=1,
        is_range=True,
        belongs_to="crop",
        when=("random_resized",),
    )
    ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3),
        "Range of the random-resized crop's aspect ratio (width / height).",
        above=0,
        is_range=True,
        belongs_to="crop",
        when=("random_resized",),
    )
    crop_fraction: float = setting(
        0.875,
        "Share of the resized image's shorter side that the centre crop keeps.",
        above=0,
        at_most=1,
        belongs_to="crop",
        when=("centre",),
    )
    pad: int = setting(
        4, "Largest shift of the image in each direction, in pixels.", at_least=0, belongs_to="crop", when=("pad",)
    )
    hflip: float = setting(0.5, "Probability of a left-right flip.", at_least=0, at_most=1)
    hflip_alternate: bool = setting(
        False,
        "Flip one half of the images in the first epoch, the other half in the second, and so on, instead of drawing "
        "for each image. In a short run each image then appears equally often in both orientations (Jordan 2024, "
        "section 3.6). This replaces `hflip`.",
    )
    vflip: float = setting(0.0, "Probability of an up-down flip.", at_least=0, at_most=1)
    rotation: float = setting(
        0.0,
        "Largest rotation x, in degrees: the angle is uniform in [-x, x]. Pixels from outside the image are black.",
        at_least=0,
        at_most=180,
        scaled=True,
    )
    rotation_filter: Literal["nearest", "linear"] = setting(
        "linear",
        'Filter of the rotation: "nearest" or "linear". "linear" takes five times as long on the CPU (2.6 ms more per '
        "image of 224 px).",
        belongs_to="rotation",
    )
    auto: Auto = setting(
        "none",
        'Automatic augmentation: "none", "trivial" (TrivialAugmentWide), "rand" (RandAugment) or "autoaugment" '
        "(AutoAugment's ImageNet policy). RandAugment applies `auto_num_ops` operations of `auto_magnitude`. The "
        "operations use torchvision's tables and nearest-neighbour sampling. Pixels from outside the image are black.",
    )
    auto_num_ops: int = setting(
        2,
        "Number of operations that RandAugment applies one after the other.",
        at_least=1,
        at_most=8,
        belongs_to="auto",
        when=("rand",),
    )
    auto_magnitude: int = setting(
        9,
        "Magnitude of RandAugment's operations, 0 to 30.",
        at_least=0,
        at_most=MAX_MAGNITUDE,
        belongs_to="auto",
        when=("rand",),
    )
    brightness: float = setting(
        0.0,
        "Strength x of the brightness change: the factor is uniform in [max(0, 1 - x), 1 + x].",
        at_least=0,
        scaled=True,
    )
    contrast: float = setting(
        0.0,
        "Strength x of the contrast change: the factor is uniform in [max(0, 1 - x), 1 + x].",
        at_least=0,
        scaled=True,
    )
    saturation: float = setting(
        0.0,
        "Strength x of the saturation change: the factor is uniform in [max(0, 1 - x), 1 + x].",
        at_least=0,
        scaled=True,
    )
    hue: float = setting(
        0.0,
        "Largest hue shift x: the shift is uniform in [-x, x] turns of the colour circle, at most 0.5.",
        at_least=0,
        at_most=0.5,
        scaled=True,
    )
    lighting: float = setting(
        0.0, "Standard deviation of AlexNet's PCA lighting. AlexNet used 0.1.", at_least=0, scaled=True
    )
    grayscale: float = setting(
        0.0, "Probability of conversion to gray, in three equal channels.", at_least=0, at_most=1, scaled=True
    )
    blur: float = setting(0.0, "Probability of a Gaussian blur.", at_least=0, at_most=1, scaled=True)
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), "Range of the blur's sigma, in pixels.", above=0, at_most=10, is_range=True, belongs_to="blur"
    )
    noise: float = setting(
        0.0, "Probability of Gaussian noise, drawn for each pixel and channel.", at_least=0, at_most=1, scaled=True
    )
    noise_std: tuple[float, float] = setting(
        (0.0, 25.0),
        "Range of the noise's standard deviation, in grey levels.",
        at_least=0,
        at_most=255,
        is_range=True,
        belongs_to="noise",
    )
    salt_pepper: float = setting(
        0.0,
        "Probability of salt-and-pepper noise: it turns some pixels black and as many white.",
        at_least=0,
        at_most=1,
        scaled=True,
    )
    salt_pepper_amount: tuple[float, float] = setting(
        (0.0, 0.1),
        "Range of the fraction of pixels that salt-and-pepper noise changes. Half of them turn black, half white.",
        at_least=0,
        at_most=1,
        is_range=True,
        belongs_to="salt_pepper",
    )
    jpeg: float = setting(
        0.0, "Probability of JPEG compression, with a quality from `jpeg_quality`.", at_least=0, at_most=1, scaled=True
    )
    jpeg_quality: tuple[int, int] = setting(
        (30, 95), "Range of the JPEG quality, 1 to 100.", at_least=1, at_most=100, is_range=True, belongs_to="jpeg"
    )
    erase: float = setting(
        0.0,
        "Probability of random erasing, which fills a rectangle with the colour `data.mean`.",
        at_least=0,
        at_most=1,
        scaled=True,
    )
    erase_scale: tuple[float, float] = setting(
        (0.02, 0.33),
        "Range of the erased rectangle's area, as a fraction of the image's area.",
        above=0,
        at_most=1,
        is_range=True,
        belongs_to="erase",
    )
    erase_ratio: tuple[float, float] = setting(
        (0.3, 3.3),
        "Range of the erased rectangle's aspect ratio (height / width).",
        above=0,
        is_range=True,
        belongs_to="erase",
    )
    repeats: int = setting(
        1,
        "Number of times that each image occurs in a global batch, with different draws (repeated augmentation, "
        "Hoffer et al. 2019). An epoch then uses only that fraction of the images. It must divide "
        "train.global_batch_size. DeiT uses 3.",
        at_least=1,
    )
    mixup: float = setting(
        0.0,
        "α of mixup's Beta distribution; 0 switches mixup off. If `cutmix` is also on, each batch gets one of the two "
        "with equal probability.",
        at_least=0,
        scaled=True,
    )
    cutmix: float = setting(0.0, "α of CutMix's Beta distribution; 0 switches CutMix off.", at_least=0, scaled=True)

    presets: ClassVar[dict[str, dict[str, float | str]]] = {
        "none": {},
        "light": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
        # torchvision's recipe of 2021 for ResNet-50: TrivialAugment, random erasing, mixup and CutMix
        "medium": {"auto": "trivial", "erase": 0.1, "mixup": 0.2, "cutmix": 1.0},
        # after DeiT (Touvron et al. 2021): RandAugment, more erasing and mixing
        "strong": {"auto": "rand", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0},
    }

    def __post_init__(self) -> None:
        check(self)
        if self.hflip_alternate and self.hflip != 0.5:
            raise ValueError(f"hflip: {self.hflip:g} has no effect with hflip_alternate; remove it")

    @property
    def jitters_colour(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def scaled(self, strength: float) -> "AugmentConfig":
        """The augmentation at a share of its strength: 1 changes nothing, 0 leaves only crops, flips and repeats.

        `strength` multiplies RandAugment's magnitude (rounded), the rotation, the ranges of the colours, the
        probabilities of the other operations, and α of mixup and CutMix. Crops, flips and repeats do not change.
        TrivialAugment and AutoAugment have no magnitude: they do not change either, and are off at 0. This follows
        the progressive learning of EfficientNetV2 (Tan & Le 2021, section 4.2).

        Raises ValueError for a strength outside [0, 1].
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"augmentation strength {strength} must be between 0 and 1")
        if strength == 1:
            return self
        known = settings_of(self)
        values: dict[str, Any] = {name: getattr(self, name) for name in known}
        values |= {name: values[name] * strength for name, about in known.items() if about.scaled}
        if self.auto == "rand":
            values["auto_magnitude"] = round(self.auto_magnitude * strength)
        if strength == 0:
            values["auto"] = "none"
        for field in fields(self):
            owner = known[field.name].belongs_to
            if owner and values[owner] in (0, "none"):  # its operation is off now
                values[field.name] = field.default
        return replace(self, **values)
