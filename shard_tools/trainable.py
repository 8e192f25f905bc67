"""Test whether training can use an image file as it is, with the decoder that training uses: DALI's.

Files that `pack` writes or copies need no comparison with Pillow: they are baseline or progressive JPEGs, gray or
colour, 8 bits, with a sampling that every decoder accepts (`jpeg.read_header`). For these, DALI's CPU decoder and
Pillow both use libjpeg-turbo with the same transform and upsampling; on 500 ImageNet images they differ by 0 grey
levels. Other files may decode differently: DALI inverts the colours of CMYK without Adobe's marker, and 16-bit gray is
clipped by Pillow and scaled by DALI.
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

ANY_SIZE = EncodeConfig(max_pixels=1 << 62)  # packing has already checked the size
TOLERANCE = 2  # grey levels of 255. Rounding accounts for 1 in CMYK and 16-bit colour, and for 0 in all else.
_lock = threading.Lock()  # the decoder holds one image


def check_trains(data: bytes, height: int, width: int, compare: bool) -> None:
    """Decode an image file as training on a CPU does; with `compare`, require the same pixels as Pillow's.

    Raises:
        BadImage: DALI cannot decode it, or decodes it to other pixels than Pillow.
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
            raise BadImage(f"DALI cannot decode it ({error}){'; pack converts it' if compare else ''}") from None
        if expected is not None:
            _compare(pixels, *expected)
    except Exception as error:
        raise BadImage(reason(data, error)) from None


def check_stored(data: bytes, compare: bool = True) -> Encoded:
    """Encode an image file of any size as packing would, and check that training can use it as it is.

    compare: as in `check_trains`; ordinary JPEGs are never compared.

    Raises:
        BadImage: as for `encode` and `check_trains`.
    """
    encoded = encode(data, ANY_SIZE)
    check_trains(data, encoded.height, encoded.width, compare and encoded.kind != "jpeg")
    return encoded


def unlike_packed(data: bytes, encoded: Encoded) -> str:
    """Why `pack` cannot have written this image file; "" if it can. encoded: the result of `check_stored`."""
    if encoded.kind == "jpeg" or is_ppm(np.frombuffer(data, np.uint8), encoded.height, encoded.width):
        return ""
    return f"is {encoded.kind}, but packing writes only gray or RGB JPEGs and PPM pixels"


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
            f"DALI and Pillow decode it to different colours (mode {mode}; up to {apart.max()} of 255 apart, "
            f"{apart.mean():.0f} on average); pack converts it"
        )
