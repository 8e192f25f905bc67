"""Gray JPEGs as a GPU's JPEG engine decodes them rightly: encoded bytes → the same, or a copy that differs in a byte.

The engine (nvJPEG 13.3 under DALI 2.4, an H200's) scrambles a JPEG of one component whose frame header declares a
sampling factor other than 1×1, as Pillow's of an "L" image with subsampling=2 does: 30 to 38 grey levels off in the
mean, and no error. The CUDA and CPU decoders are right. With one component the factor means nothing: the component's
size goes by its ratio to the largest factor, itself (ITU-T T.81, A.1.1), and its scan is not interleaved (A.2.2). So
with 1×1 in its place every decoder makes the same pixels.
"""

import numpy as np

SOI, UNIT = b"\xff\xd8", 0x11  # the factor 1×1
FRAMES = range(0xC0, 0xC3)  # SOF0 to SOF2: baseline, extended, progressive
ENDS = range(0xD0, 0xDB)  # RSTn, SOI, EOI, SOS: no frame header follows


def with_unit_factor(view: np.ndarray) -> np.ndarray:
    """(size,) uint8: `view` itself, or of a gray JPEG with another factor a copy with 1×1; in 4 µs.

    What is no JPEG, or ends before its frame header does, is returned as it is.
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
