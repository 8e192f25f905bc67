"""Count the images that each decoder decoded, from nvImageCodec's log.

DALI tries nvImageCodec's decoders one after another. A decoder that refuses an image only writes a line to a log. A
process started with `LOG_LEVEL` in its environment writes that log to its standard error. A decoder that decodes image
by image (libjpeg-turbo, nvJPEG on CUDA) logs each image. The GPU's JPEG engines decode a batch and log nothing, so the
remaining images of a batch are theirs. Names: `libjpeg_turbo_decoder`, `opencv_jpeg_decoder`, `nvjpeg_cuda_decoder`,
`nvjpeg_hw_decoder`. The log format is that of nvImageCodec 0.9.
"""

import re
from collections import Counter

LOG_LEVEL = {"DALI_NVIMGCODEC_LOG_LEVEL": "4"}  # environment variables
IN_BATCHES = "nvjpeg_hw_decoder"
NONE = "no decoder"

_EVENT = re.compile(
    r"ImageGenericDecoder::decode num_samples=(?P<batch>\d+)"
    r"|(?P<decoder>\w+_decoder) process #(?P<taken>\d+)"
    r"|Sample #(?P<refused>\d+) can't be processed"
    r"|set failure #(?P<failed>\d+)"
)


def decoders_used(log: str) -> Counter[str]:
    """The number of images by decoder. If a decoder fails and the next one gets the image, the last one counts.

    Images that every decoder refused count as `NONE`. `log`: of one process that decodes one batch at a time.
    """
    used: Counter[str] = Counter()
    num_images, taken = 0, dict[int, str]()

    def end_batch() -> None:
        used.update(taken.values())
        used[IN_BATCHES] += num_images - len(taken)
        taken.clear()

    for event in _EVENT.finditer(log):
        if event["batch"]:
            end_batch()
            num_images = int(event["batch"])
        elif event["decoder"]:
            taken[int(event["taken"])] = event["decoder"]
        else:
            taken[int(event["refused"] or event["failed"])] = NONE
    end_batch()
    return +used
