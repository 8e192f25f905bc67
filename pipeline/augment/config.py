"""The `[augment]` section of a recipe: the settings of every augmentation, their ranges, and the presets."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

Auto = Literal["none", "trivial", "rand", "autoaugment"]
MAX_MAGNITUDE = 30  # RandAugment's magnitude counts 31 bins from 0, as in torchvision


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation, in the order in which it is applied. docs/augmentations.md shows each.

    A name alone (`blur`, `erase`, …) is the probability that an image gets it; 0 switches it off. A pair is the range
    of a uniform draw.

    preset: values for what the recipe does not give, from `presets`. It is filled in by `recipes.config`, so in
        Python it says nothing: write `AugmentConfig(**AugmentConfig.presets["light"])`.
    crop: "random_resized"; "centre": the shorter side resized to image_size / crop_fraction, the centre cut out, as in
        validation; "pad", for small images: the whole image at image_size, moved by up to `pad` pixels up or down and
        left or right, black where nothing is left (torchvision's `RandomCrop` with `padding`).
    scale, ratio: area (as a fraction of the image's) and aspect ratio (width / height) of the random-resized crop.
    hflip, vflip: flips left-right and up-down.
    hflip_alternate: instead of a draw for each image and epoch, half of the images are flipped in the first epoch, the
        other half in the second, and so on (Jordan 2024, section 3.6); the images of a short run then come in both
        ways equally often. It takes the place of `hflip`.
    rotation: the angle is uniform in [-x, x] degrees; black outside. rotation_filter: "linear" costs six times as
        much as "nearest" on the CPU.
    auto: "trivial" is TrivialAugmentWide, "rand" RandAugment with `auto_num_ops` operations of `auto_magnitude` (0 to
        30), "autoaugment" AutoAugment's ImageNet policy; torchvision's tables, nearest neighbour, black outside.
    brightness, contrast, saturation: the factor is uniform in [max(0, 1 - x), 1 + x].
    hue: the shift is uniform in [-x, x] turns of the colour circle, at most 0.5.
    lighting: standard deviation of AlexNet's PCA lighting (0.1 there).
    grayscale: to gray, in three equal channels.
    blur, blur_sigma: Gaussian; sigma in pixels.
    noise, noise_std: Gaussian, for each pixel and channel; standard deviation in grey levels.
    salt_pepper, salt_pepper_amount: the fraction of pixels that turn black or white, half of them each.
    jpeg, jpeg_quality: through a JPEG of this quality, 1 to 100.
    erase, erase_scale, erase_ratio: a rectangle in the data's mean colour, its area (as a fraction) and its aspect
        ratio (height / width).
    repeats: each image comes so many times in a global batch, with different draws, and an epoch holds so many times
        fewer images (Hoffer et al. 2019; DeiT has 3); it must divide train.global_batch_size.
    mixup, cutmix: α of the Beta distribution; with both, a batch gets either with equal probability.
    """

    preset: Literal["none", "light", "medium", "strong"] = "none"
    crop: Literal["random_resized", "centre", "pad"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_fraction: float = 0.875
    pad: int = 4
    hflip: float = 0.5
    hflip_alternate: bool = False
    vflip: float = 0.0
    rotation: float = 0.0
    rotation_filter: Literal["nearest", "linear"] = "linear"
    auto: Auto = "none"
    auto_num_ops: int = 2
    auto_magnitude: int = 9
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    lighting: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.0
    noise_std: tuple[float, float] = (0.0, 25.0)
    salt_pepper: float = 0.0
    salt_pepper_amount: tuple[float, float] = (0.0, 0.1)
    jpeg: float = 0.0
    jpeg_quality: tuple[int, int] = (30, 95)
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    repeats: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "none": {},
        "light": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
        # torchvision's recipe of 2021 for ResNet-50: TrivialAugment, random erasing, mixup and CutMix
        "medium": {"auto": "trivial", "erase": 0.1, "mixup": 0.2, "cutmix": 1.0},
        # after DeiT (Touvron et al. 2021): RandAugment, more erasing and mixing
        "strong": {"auto": "rand", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0},
    }

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            values = getattr(self, name)
            pair = values if isinstance(values, tuple) else (values, values)
            if not low <= pair[0] <= pair[1] <= high:
                shown = "low ≤ high, both " if isinstance(values, tuple) else ""
                raise ValueError(f"{name}: {values} must be {shown}{_interval(low, high)}")
        for name in ("scale", "ratio", "blur_sigma", "erase_scale", "erase_ratio", "crop_fraction"):
            value = getattr(self, name)
            if not (value[0] if isinstance(value, tuple) else value) > 0:
                raise ValueError(f"{name}: {value} must be above 0")
        if self.hflip_alternate and self.hflip != 0.5:
            raise ValueError(f"hflip: {self.hflip:g} has no effect with hflip_alternate; leave it out")
        for field in fields(self):
            reader, wanted = _READ_WITH.get(field.name, (None, None))
            if reader is None or getattr(self, field.name) == field.default:
                continue
            if wanted is None and not getattr(self, reader):
                raise ValueError(f"{field.name}: has no effect with {reader} = 0; leave it out, or set {reader}")
            if wanted is not None and getattr(self, reader) != wanted:
                raise ValueError(f'{field.name}: has no effect unless {reader} = "{wanted}"; leave it out')

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
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: values[name] * strength for name in _SCALED}
        if self.auto == "rand":
            values["auto_magnitude"] = round(self.auto_magnitude * strength)
        if strength == 0:
            values["auto"] = "none"
        for field in fields(self):  # what belongs to an operation that is off now
            reader = _READ_WITH.get(field.name, ("crop", None))[0]
            if values[reader] in (0, "none"):
                values[field.name] = field.default
        return replace(self, **values)


_INF = float("inf")
_RANGES: list[tuple[str, float, float]] = [
    *((name, 0, 1) for name in ("scale", "crop_fraction", "salt_pepper_amount", "erase_scale")),
    *((name, 0, 1) for name in ("hflip", "vflip", "grayscale", "blur", "noise", "salt_pepper", "jpeg", "erase")),
    *((name, 0, _INF) for name in ("ratio", "erase_ratio", "pad", "brightness", "contrast", "saturation", "lighting")),
    *((name, 0, _INF) for name in ("mixup", "cutmix")),
    ("hue", 0, 0.5),
    ("rotation", 0, 180),
    ("auto_num_ops", 1, 8),
    ("auto_magnitude", 0, MAX_MAGNITUDE),
    ("blur_sigma", 0, 10),
    ("noise_std", 0, 255),
    ("jpeg_quality", 1, 100),
    ("repeats", 1, _INF),
]
# what `scaled` multiplies: probabilities, ranges, α
_SCALED = (
    "rotation", "brightness", "contrast", "saturation", "hue", "lighting", "grayscale", "blur", "noise", "salt_pepper",
    "jpeg", "erase", "mixup", "cutmix",
)  # fmt: skip
# setting → (what it belongs to, the value that this must have, or None: anything but 0)
_READ_WITH: dict[str, tuple[str, str | None]] = {
    "scale": ("crop", "random_resized"),
    "ratio": ("crop", "random_resized"),
    "crop_fraction": ("crop", "centre"),
    "pad": ("crop", "pad"),
    "rotation_filter": ("rotation", None),
    "auto_num_ops": ("auto", "rand"),
    "auto_magnitude": ("auto", "rand"),
    "blur_sigma": ("blur", None),
    "noise_std": ("noise", None),
    "salt_pepper_amount": ("salt_pepper", None),
    "jpeg_quality": ("jpeg", None),
    "erase_scale": ("erase", None),
    "erase_ratio": ("erase", None),
}


def _interval(low: float, high: float) -> str:
    return f"{low:g} or more" if high == _INF else f"in {low:g} to {high:g}"
