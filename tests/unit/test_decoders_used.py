"""Which decoder took an image: on the log that DALI writes here, and on what it would write on a GPU."""

import os
import subprocess
import sys

from pipeline.decoders_used import LOG_LEVEL, decoders_used

DECODE = """
import io
import numpy as np
from PIL import Image
from nvidia.dali import Pipeline, fn

def encoded(kind, mode="RGB", cut=None, **settings):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).convert(mode).save(
        stream, kind, **settings)
    return np.frombuffer(stream.getvalue()[:cut], np.uint8)

images = [encoded("JPEG", subsampling=2), encoded("JPEG", subsampling=0), encoded("JPEG", "L"),
          encoded("JPEG", progressive=True), encoded("PNG")]
for batch in ([images, images[:3]], [[*images, encoded("JPEG", cut=2000)]]):
    batches = iter(batch)
    pipe = Pipeline(batch_size=8, num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipe:
        pipe.set_outputs(fn.decoders.image(fn.external_source(lambda: next(batches), batch=True)))
    try:
        for _ in batch:
            pipe.run()
    except RuntimeError:
        pass
"""

INFO = "\033[0;32m[INFO] \033[0m[nvimgcodec] "
# Lines of nvImageCodec 0.9, those of the hardware decoder put together from its strings and its source.
ON_A_GPU = "\n".join(
    INFO + line
    for line in (
        "Framework is registering decoder (id:nvjpeg_hw_decoder codec:jpeg)",
        "Framework is registering decoder (id:nvjpeg_cuda_decoder codec:jpeg)",
        "create nvjpeg_hw_decoder load_hint 0.65 load_hint_policy 2",
        "create nvjpeg_cuda_decoder load_hint 1 load_hint_policy 2",
        "ImageGenericDecoder::decode num_samples=6",
        "decode num_samples=6",
        "nvjpeg_hw_decoder selecting max batch size to 4 mini_bs=0",
        "3: nvjpeg_cuda_decoder process #2",
        "1: nvjpeg_cuda_decoder process #5",
        "1: libjpeg_turbo_decoder process #5",  # after nvJPEG failed
        "ImageGenericDecoder::decode num_samples=4",
        "decode num_samples=4",
        "nvjpeg_hw_decoder Using previous max batch size of 4",
        "nvjpeg_hw_decoder failed #3. Trying next: nvjpeg_cuda_decoder",
        "0: nvjpeg_cuda_decoder process #3",
        "Sample #1 can't be processed",
    )
)


def test_the_log_of_this_machine() -> None:
    """Two whole batches, and one with an image that ends in the middle, which the second decoder fails at, too."""
    done = subprocess.run([sys.executable, "-c", DECODE], env=os.environ | LOG_LEVEL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = {"libjpeg_turbo_decoder": 4 + 3 + 4, "opencv_png_decoder": 1 + 1, "opencv_jpeg_decoder": 1}
    assert decoders_used(done.stdout + done.stderr) == expected


def test_the_log_of_a_gpu() -> None:
    found = decoders_used(ON_A_GPU)
    assert found == {
        "nvjpeg_hw_decoder": 4 + 2,
        "nvjpeg_cuda_decoder": 1 + 1,
        "libjpeg_turbo_decoder": 1,
        "no decoder": 1,
    }


def test_a_log_without_images() -> None:
    assert not decoders_used("")
    assert not decoders_used(INFO + "Unregistering extension libtiff_extension version:0.9.0\n")
