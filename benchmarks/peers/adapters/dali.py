"""The graph of DALI's examples: `readers.webdataset`, decode-and-crop, resize, `crop_mirror_normalize`, on the CPU.

Its PyTorch iterator hands the batches over without a copy. `cls` is left out: the reader gives it as text.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator


def batches(job: Any) -> Iterator[np.ndarray]:
    pipe = Pipeline(batch_size=job.batch_size, num_threads=job.workers, device_id=None, prefetch_queue_depth=2, seed=1)
    with pipe:
        jpegs = fn.readers.webdataset(
            paths=job.shards, index_paths=job.indexes, ext=["jpg"], random_shuffle=True, pad_last_batch=True
        )
        images = fn.decoders.image_random_crop(
            jpegs, output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        size = [job.image_size, job.image_size]
        images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="CHW", mean=job.mean, std=job.std, mirror=fn.random.coin_flip()
        )
        pipe.set_outputs(images)
    for (batch,) in DALIGenericIterator([pipe], ["images"], size=-1):
        yield batch["images"].numpy()
