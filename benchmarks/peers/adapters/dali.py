"""The graph of DALI's examples: `readers.webdataset`, decode-and-crop, resize, `crop_mirror_normalize`, on the CPU.

Its PyTorch iterator hands the batches over without a copy. The reader gives labels as text.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator


def loader(job: SimpleNamespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    pipe = Pipeline(batch_size=job.batch_size, num_threads=job.workers, device_id=None, prefetch_queue_depth=2, seed=1)
    size = [job.image_size, job.image_size]
    with pipe:
        jpegs, labels = fn.readers.webdataset(
            paths=job.shards, index_paths=job.indexes, ext=["jpg;ppm", "cls"], random_shuffle=True
        )
        images = fn.decoders.image_random_crop(
            jpegs, output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="CHW", mean=job.mean, std=job.std, mirror=fn.random.coin_flip()
        )
        pipe.set_outputs(images, fn.pad(labels))
    for (batch,) in DALIGenericIterator([pipe], ["images", "labels"], size=-1):
        text = batch["labels"].numpy()
        yield batch["images"].numpy(), text.view(f"S{text.shape[1]}")[:, 0].astype(np.int64)
