"""Work around a fault of the GPU's JPEG engine with gray JPEGs: change one byte of the header, in a copy.

The engine (nvJPEG 13.3 under DALI 2.4, on an H200) scrambles a JPEG with one component if its frame header declares a
sampling factor other than 1×1. Pillow writes such a file for an "L" image with subsampling=2. The pixels are then off
by 30 to 38 grey levels on average, without an error. The CUDA and CPU decoders are correct. With a single component the
factor has no meaning: the size of the component depends on its ratio to the largest factor, which is its own (ITU-T
T.81, A.1.1), and its scan is not interleaved (A.2.2). So with a factor of 1×1 every decoder makes the same pixels.
"""

import numpy as np

SOI, UNIT = b"\xff\xd8", 0x11  # the factor 1×1
FRAMES = range(0xC0, 0xC3)  # SOF0 to SOF2: baseline, extended, progressive
ENDS = range(0xD0, 0xDB)  # RSTn, SOI, EOI, SOS: no frame header follows


def with_unit_factor(view: np.ndarray) -> np.ndarray:
    """`view`, (size,) uint8; or, for a gray JPEG with another factor, a copy with the factor 1×1. Takes 4 µs.

    Anything that is not a JPEG, or ends within its frame header, is returned unchanged.
    """
    data, at = view.data, 2
    if data[:2] != SOI:
        return view
    while at + 11 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in FRAMES:  # marker, length (2), bits, height (2), width (2), components, the first's id, its factor
            if data[at + 9] == 1 and data[at + 11] != UNIT:
                view = view.copy()
                view[at + 11] = UNIT
            return view
        if marker in ENDS:
            return view
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])  # 0xFF: fill before a marker
    return view
