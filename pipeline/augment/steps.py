"""Parameters → the steps of the graph. A step is a kind of operation, the samples that need it, and its arrays.

`pipeline/augment/graph.py` has an operation for each kind. Samples that do not need a step cost nothing.
"""

from typing import NamedTuple

import numpy as np

from penstock.pipeline.augment.auto import OP_ID
from penstock.pipeline.augment.colour import LUMA, colour_map, to_gray
from penstock.pipeline.augment.config import AugmentConfig
from penstock.pipeline.augment.geometry import rotation, shear_or_move
from penstock.pipeline.augment.noise import blur_kernels, blur_radius, hashed_lines, salt_pepper_threshold
from penstock.pipeline.augment.params import AugmentParams, StepArray

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # Pillow's ImageFilter.SMOOTH
_IDENTITY = np.pad([[1.0]], 1)


class Step(NamedTuple):
    """A step. kind: in `graph.OPERATIONS`. on: (n,) bool, the samples that need it. arrays: arguments, a row each."""

    kind: str
    on: np.ndarray
    arrays: dict[str, np.ndarray]


def step_arrays(params: AugmentParams, config: AugmentConfig, image_size: int) -> AugmentParams:
    """The steps as flat arrays for the graph, in order, named by `StepArray`."""
    steps = _steps(params, config, image_size)
    return {
        StepArray(number, step.kind, name): np.ascontiguousarray(values)  # DALI accepts nothing else
        for number, step in enumerate(steps)
        for name, values in ({"on": step.on} | step.arrays).items()
    }


def _steps(params: AugmentParams, config: AugmentConfig, image_size: int) -> list[Step]:
    steps = []
    if "rotation" in params:
        kind = "warp_linear" if config.rotation_filter == "linear" else "warp_nearest"
        steps.append(Step(kind, params["rotation"] != 0, {"matrix": rotation(params["rotation"], image_size)}))
    if "auto_op" in params:
        for op, magnitude in zip(params["auto_op"].T, params["auto_magnitude"].T, strict=True):
            steps += _auto_steps(op, magnitude.astype(np.float64), image_size)
    if not params.keys().isdisjoint(("brightness", "lighting", "grayscale")):
        steps.append(_colour_step(params))
    if "blur" in params:
        kernels = blur_kernels(params["blur"], blur_radius(config.blur_sigma[1]))
        steps.append(Step("blur", params["blur"] > 0, {"row": kernels[:, None], "column": kernels[:, :, None]}))
    if "noise" in params:
        key = params["noise_key"]
        rows, columns = hashed_lines(key[:, 0], image_size), hashed_lines(key[:, 1], 3 * image_size)
        columns = columns.reshape(-1, image_size, 3)
        arrays = {"rows": rows[:, :, None, None], "columns": columns, "std": params["noise"]}
        steps.append(Step("noise", params["noise"] > 0, arrays))
    if "salt_pepper" in params:
        key = params["salt_pepper_key"]
        rows, columns = hashed_lines(key[:, 0], image_size), hashed_lines(key[:, 1], image_size)
        low = salt_pepper_threshold(params["salt_pepper"])
        arrays = {"rows": rows[:, :, None, None], "columns": columns[:, :, None], "low": low}
        steps.append(Step("salt_pepper", low > 0, arrays))
    if "jpeg" in params:
        steps.append(Step("jpeg", params["jpeg"] > 0, {"quality": np.maximum(params["jpeg"], 1)}))
    if "erase" in params:
        box = params["erase"].astype(np.float32)
        steps.append(Step("erase", box[:, 2] > 0, {"anchor": box[:, :2], "shape": box[:, 2:]}))
    return steps


def _colour_step(params: AugmentParams) -> Step:
    """Colour jitter, then lighting, then grayscale."""
    n = len(params["anchor"])
    matrix, mean_gain = np.tile(np.eye(3), (n, 1, 1)), np.zeros(n)
    if "brightness" in params:
        matrix, mean_gain = colour_map(
            **{name: params[name] for name in ("brightness", "contrast", "saturation", "hue")}
        )
    offset = params.get("lighting", np.zeros((n, 3)))
    matrix, offset = to_gray(matrix, offset, params.get("grayscale", np.zeros(n, bool)))
    on = ~(np.isclose(matrix, np.eye(3)).all(axis=(1, 2)) & ~offset.any(axis=1) & (mean_gain == 0))
    if "brightness" in params:
        return Step("colour_about_mean", on, _colour_arrays(matrix, offset, mean_gain))
    arrays = _colour_arrays(matrix, offset, mean_gain)
    del arrays["mean_weights"]
    return Step("colour", on, arrays)


def _colour_arrays(matrix: np.ndarray, offset: np.ndarray, mean_gain: np.ndarray) -> dict[str, np.ndarray]:
    weights = mean_gain[:, None, None] * np.tile(LUMA, (3, 1))  # mean RGB of the image → what is added to each channel
    return {name: values.astype(np.float32) for name, values in
            (("matrix", matrix), ("offset", offset), ("mean_weights", weights))}  # fmt: skip


def _auto_steps(op: np.ndarray, magnitude: np.ndarray, image_size: int) -> list[Step]:
    """The operation of each sample, (n,), one of 15 (`auto.OPS`), and its magnitude, (n,), as six exclusive steps."""

    def where(*names: str) -> np.ndarray:
        return np.isin(op, [OP_ID[name] for name in names])

    def amount(name: str, otherwise: float = 0) -> np.ndarray:
        return np.where(where(name), magnitude, otherwise)

    shears = {"shear_x": "ShearX", "shear_y": "ShearY", "move_x": "TranslateX", "move_y": "TranslateY"}
    moved = shear_or_move(**{argument: amount(name) for argument, name in shears.items()})
    matrix = np.where(where("Rotate")[:, None, None], rotation(magnitude, image_size), moved)

    zeros = np.zeros_like(magnitude)
    colours, mean_gain = colour_map(
        brightness=1 + amount("Brightness"), contrast=1 + amount("Contrast"), saturation=1 + amount("Color"), hue=zeros
    )
    kept_bits = amount("Posterize", 8).astype(int)
    solarized = np.ceil(np.where(where("Invert"), 0, amount("Solarize", 256)))
    sharpness = amount("Sharpness")[:, None, None]
    return [
        Step("warp_nearest", where("Rotate", *shears.values()), {"matrix": matrix}),
        Step(
            "colour_about_mean",
            where("Brightness", "Contrast", "Color"),
            _colour_arrays(colours, np.zeros((len(op), 3)), mean_gain),
        ),
        Step(
            "bits",
            where("Posterize", "Solarize", "Invert"),
            {"mask": (256 - (1 << (8 - kept_bits))).astype(np.uint8), "threshold": solarized.astype(np.uint16)},
        ),
        Step(
            "filter",
            where("Sharpness"),
            {"kernel": ((1 + sharpness) * _IDENTITY - sharpness * _SMOOTH).astype(np.float32)},
        ),
        Step("autocontrast", where("AutoContrast"), {}),
        Step("equalize", where("Equalize"), {}),
    ]
