"""Which decoder took each image, by nvImageCodec's own log: log text → images by decoder.

DALI asks nvImageCodec's decoders in turn, and one that refuses an image only says so in a log. A process started with
`LOG_LEVEL` in its environment writes that log to its standard error. A decoder that takes image by image
(libjpeg-turbo, nvJPEG on CUDA) logs each; the GPU's JPEG engines take a batch and log none, so theirs are what is
left of the batch. Names: `libjpeg_turbo_decoder`, `opencv_jpeg_decoder`, `nvjpeg_cuda_decoder`, `nvjpeg_hw_decoder`.
The log is that of nvImageCodec 0.9.
"""

import re
from collections import Counter

LOG_LEVEL = {"DALI_NVIMGCODEC_LOG_LEVEL": "4"}  # an environment
IN_BATCHES = "nvjpeg_hw_decoder"
NONE = "no decoder"

_EVENT = re.compile(
    r"ImageGenericDecoder::decode num_samples=(?P<batch>\d+)"
    r"|(?P<decoder>\w+_decoder) process #(?P<taken>\d+)"
    r"|Sample #(?P<refused>\d+) can't be processed"
    r"|set failure #(?P<failed>\d+)"
)


def decoders_used(log: str) -> Counter[str]:
    """Decoder → how many images it took; one that fails hands its image to the next, and the last counts.

    Images that every decoder refused count as `NONE`. The log of one process, which decodes one batch at a time.
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
