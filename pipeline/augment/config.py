"""The `[augment]` section of a recipe: the settings of every augmentation, and the presets."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from penstock.settings import check, setting, settings_of

Auto = Literal["none", "trivial", "rand", "autoaugment"]
MAX_MAGNITUDE = 30  # RandAugment's magnitude counts 31 bins from 0, as in torchvision


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation, in the order in which it is applied. docs/augmentations.md shows each.

    A name alone (`blur`, `erase`, …) is the probability that an image gets it; 0 switches it off. A pair is the range
    of a uniform draw.
    """

    preset: Literal["none", "light", "medium", "strong"] = setting(
        "none",
        "Values for what the recipe does not give, from `presets`. It is filled in by `recipes.config`, so in Python "
        'it says nothing: write `AugmentConfig(**AugmentConfig.presets["light"])`.',
    )
    crop: Literal["random_resized", "centre", "pad"] = setting(
        "random_resized",
        'What is cut out of an image: "random_resized"; "centre": the shorter side resized to image_size / '
        'crop_fraction, the centre cut out, as in validation; "pad", for small images: the whole image at image_size, '
        "moved by up to `pad` pixels up or down and left or right, black where nothing is left (torchvision's "
        "`RandomCrop` with `padding`).",
    )
    scale: tuple[float, float] = setting(
        (0.08, 1.0),
        "Area of the random-resized crop, as a fraction of the image's.",
        above=0,
        at_most=1,
        is_range=True,
        belongs_to="crop",
        when=("random_resized",),
    )
    ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3),
        "Aspect ratio (width / height) of the random-resized crop.",
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
    pad: int = setting(4, "Pixels by which the image moves at most.", at_least=0, belongs_to="crop", when=("pad",))
    hflip: float = setting(0.5, "Flip left-right.", at_least=0, at_most=1)
    hflip_alternate: bool = setting(
        False,
        "Instead of a draw for each image and epoch, half of the images are flipped left-right in the first epoch, the "
        "other half in the second, and so on (Jordan 2024, section 3.6); the images of a short run then come in both "
        "ways equally often. It takes the place of `hflip`.",
    )
    vflip: float = setting(0.0, "Flip up-down.", at_least=0, at_most=1)
    rotation: float = setting(
        0.0, "The angle is uniform in [-x, x] degrees; black outside.", at_least=0, at_most=180, scaled=True
    )
    rotation_filter: Literal["nearest", "linear"] = setting(
        "linear", '"linear" costs six times as much as "nearest" on the CPU.', belongs_to="rotation"
    )
    auto: Auto = setting(
        "none",
        '"trivial" is TrivialAugmentWide, "rand" RandAugment with `auto_num_ops` operations of `auto_magnitude`, '
        "\"autoaugment\" AutoAugment's ImageNet policy; torchvision's tables, nearest neighbour, black outside.",
    )
    auto_num_ops: int = setting(
        2, "RandAugment's operations in a row.", at_least=1, at_most=8, belongs_to="auto", when=("rand",)
    )
    auto_magnitude: int = setting(
        9,
        "RandAugment's magnitude, 0 to 30.",
        at_least=0,
        at_most=MAX_MAGNITUDE,
        belongs_to="auto",
        when=("rand",),
    )
    brightness: float = setting(0.0, "The factor is uniform in [max(0, 1 - x), 1 + x].", at_least=0, scaled=True)
    contrast: float = setting(0.0, "The factor is uniform in [max(0, 1 - x), 1 + x].", at_least=0, scaled=True)
    saturation: float = setting(0.0, "The factor is uniform in [max(0, 1 - x), 1 + x].", at_least=0, scaled=True)
    hue: float = setting(
        0.0,
        "The shift is uniform in [-x, x] turns of the colour circle, at most 0.5.",
        at_least=0,
        at_most=0.5,
        scaled=True,
    )
    lighting: float = setting(0.0, "Standard deviation of AlexNet's PCA lighting (0.1 there).", at_least=0, scaled=True)
    grayscale: float = setting(0.0, "To gray, in three equal channels.", at_least=0, at_most=1, scaled=True)
    blur: float = setting(0.0, "Gaussian blur.", at_least=0, at_most=1, scaled=True)
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), "Sigma of the blur in pixels.", above=0, at_most=10, is_range=True, belongs_to="blur"
    )
    noise: float = setting(0.0, "Gaussian noise, for each pixel and channel.", at_least=0, at_most=1, scaled=True)
    noise_std: tuple[float, float] = setting(
        (0.0, 25.0),
        "Standard deviation of the noise in grey levels.",
        at_least=0,
        at_most=255,
        is_range=True,
        belongs_to="noise",
    )
    salt_pepper: float = setting(0.0, "Some pixels turn black, and as many white.", at_least=0, at_most=1, scaled=True)
    salt_pepper_amount: tuple[float, float] = setting(
        (0.0, 0.1),
        "The fraction of pixels that turn black or white, half of them each.",
        at_least=0,
        at_most=1,
        is_range=True,
        belongs_to="salt_pepper",
    )
    jpeg: float = setting(0.0, "Through a JPEG of `jpeg_quality`.", at_least=0, at_most=1, scaled=True)
    jpeg_quality: tuple[int, int] = setting(
        (30, 95), "The JPEG's quality, 1 to 100.", at_least=1, at_most=100, is_range=True, belongs_to="jpeg"
    )
    erase: float = setting(0.0, "A rectangle in the data's mean colour.", at_least=0, at_most=1, scaled=True)
    erase_scale: tuple[float, float] = setting(
        (0.02, 0.33),
        "Area of the erased rectangle, as a fraction of the image's.",
        above=0,
        at_most=1,
        is_range=True,
        belongs_to="erase",
    )
    erase_ratio: tuple[float, float] = setting(
        (0.3, 3.3), "Aspect ratio (height / width) of the erased rectangle.", above=0, is_range=True, belongs_to="erase"
    )
    repeats: int = setting(
        1,
        "Each image comes so many times in a global batch, with different draws, and an epoch holds so many times "
        "fewer images (Hoffer et al. 2019; DeiT has 3); it must divide train.global_batch_size.",
        at_least=1,
    )
    mixup: float = setting(
        0.0,
        "α of mixup's Beta distribution; with cutmix, too, a batch gets either with equal probability.",
        at_least=0,
        scaled=True,
    )
    cutmix: float = setting(0.0, "α of CutMix's Beta distribution.", at_least=0, scaled=True)

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
            raise ValueError(f"hflip: {self.hflip:g} has no effect with hflip_alternate; leave it out")

    @property
    def jitters_colour(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def scaled(self, strength: float) -> "AugmentConfig":
        """This augmentation at a share of its strength: 1 is itself, 0 leaves crops, flips and repeats only.

        As EfficientNetV2's progressive learning has it (Tan & Le 2021, section 4.2), what regularises is scaled and
        what makes the input is not: RandAugment's magnitude (rounded), rotation, the ranges of the colours, the
        probabilities of the other operations, and α of mixup and CutMix are multiplied by `strength`.
        TrivialAugment and AutoAugment have no magnitude to scale: they are as they are, and off at 0.

        Raises ValueError for a strength outside [0, 1].
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"augmentation strength {strength} must be in 0 to 1")
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
            if owner and values[owner] in (0, "none"):  # it belongs to an operation that is off now
                values[field.name] = field.default
        return replace(self, **values)
