"""webdataset on the shards, decoding by PIL and torchvision's transforms; the pipeline of its ImageNet example."""

from types import SimpleNamespace

import webdataset as wds
from adapters.shared import torchvision_transform


def loader(job: SimpleNamespace) -> wds.WebLoader:
    shuffled = wds.WebDataset(job.shards, resampled=True, shardshuffle=False).shuffle(1000)  # samples, still encoded
    decoded = shuffled.decode("pil").to_tuple("jpg;ppm", "cls").map_tuple(torchvision_transform(job, pil=True))
    batches = decoded.batched(job.batch_size, partial=False)
    return wds.WebLoader(batches, batch_size=None, num_workers=job.workers)
