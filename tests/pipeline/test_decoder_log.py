"""DALI's log on this machine shows the decoder of each image."""

import os
import subprocess
import sys

from penstock.pipeline.decoders_used import LOG_LEVEL, decoders_used

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


def test_the_log_of_this_machine() -> None:
    """Two whole batches, and one with an image that ends in the middle, which the second decoder fails at, too."""
    done = subprocess.run([sys.executable, "-c", DECODE], env=os.environ | LOG_LEVEL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = {"libjpeg_turbo_decoder": 4 + 3 + 4, "opencv_png_decoder": 1 + 1, "opencv_jpeg_decoder": 1}
    assert decoders_used(done.stdout + done.stderr) == expected
