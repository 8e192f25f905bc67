"""Whether an image trains as it is: its file's bytes → nothing, or why not. The decoder that trains decides: DALI's.

What `pack` writes and leaves untouched needs no comparison: baseline or progressive JPEGs, gray or colour, 8 bits, with
a sampling that every decoder takes (`jpeg.read_header`). There DALI's CPU decoder is libjpeg-turbo as Pillow's is, with
the same transform and upsampling: on 500 of ImageNet's images the two differ nowhere (0 grey levels). Others may:
CMYK without Adobe's marker comes out in the opposite colours, 16-bit gray is cut off by Pillow and scaled by DALI.
"""

import io
import threading
import warnings
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penstock.pipeline.config import DataConfig
from penstock.pipeline.probe import Decoder, bad_header
from penstock.shard_tools.encode import FORMATS, BadImage, EncodeConfig, Encoded, encode, reason
from penstock.shards.ppm import is_ppm

ANY_SIZE = EncodeConfig(max_pixels=1 << 62)  # what is packed was small enough then
TOLERANCE = 2  # grey levels of 255. What is right differs by rounding: CMYK and 16-bit colour by 1, all else by 0.
_lock = threading.Lock()  # the decoder holds one image


def check_trains(data: bytes, height: int, width: int, compare: bool) -> None:
    """Decode an image file as training on a CPU does; if `compare`, its pixels have to be those of Pillow.

    Raises:
        BadImage: DALI does not decode it, or to other pixels.
    """
    try:
        expected = _pillow(data) if compare else None
        view = np.frombuffer(data, np.uint8)
        try:
            if complaint := bad_header(view, height, width):
                raise ValueError(complaint)
            with _lock:
                pixels = _decoder().pixels(view, height, width)
        except ValueError as error:
            raise BadImage(f"DALI does not decode it ({error}){'; pack converts it' if compare else ''}") from None
        if expected is not None:
            _compare(pixels, *expected)
    except Exception as error:
        raise BadImage(reason(data, error)) from None


def check_stored(data: bytes, compare: bool = True) -> Encoded:
    """What packing would make of an image file, however large, that also trains as it is. compare: see `check_trains`;
    an ordinary JPEG needs it in no case.

    Raises:
        BadImage: as `encode` and `check_trains`.
    """
    encoded = encode(data, ANY_SIZE)
    check_trains(data, encoded.height, encoded.width, compare and encoded.kind != "jpeg")
    return encoded


def unlike_packed(data: bytes, encoded: Encoded) -> str:
    """Why `pack` has not written this image file, "" if it may have. encoded: what `check_stored` said of it."""
    if encoded.kind == "jpeg" or is_ppm(np.frombuffer(data, np.uint8), encoded.height, encoded.width):
        return ""
    return f"is {encoded.kind}, neither a gray or RGB JPEG nor pixels as packing writes them"


@cache
def _decoder() -> Decoder:
    return Decoder(DataConfig())


def _pillow(data: bytes) -> tuple[str, NDArray[np.uint8]]:
    """Pillow's mode, and (H, W, 3) as torchvision's loader gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.mode, np.asarray(image.convert("RGB"))


def _compare(pixels: NDArray[np.uint8], mode: str, expected: NDArray[np.uint8]) -> None:
    apart = np.abs(pixels.astype(np.int16) - expected)
    if apart.max() > TOLERANCE:
        raise BadImage(
            f"DALI and Pillow see other colours in it (mode {mode}; up to {apart.max()} of 255 apart, "
            f"{apart.mean():.0f} in the mean); pack converts it"
        )
