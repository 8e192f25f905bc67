"""The compared programs and the files that they read."""

from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Literal, NamedTuple

OURS, PIXELS = "penstock", "penstock-pixels"


class Peer(NamedTuple):
    """One program.

    package: the distribution whose version is shown; empty for this project.
    reads: a folder of JPEGs by class, our shards, or files of its own, made by its adapter's `prepare`.
    adapter: its file in adapters/. Several peers may be one program with different `options`.
    """

    package: str
    reads: Literal["folder", "shards", "own"]
    adapter: str
    about: str
    options: Mapping[str, str | float] = MappingProxyType({})


DALI = next((one.name for one in metadata.distributions() if one.name.startswith("nvidia-dali-cuda")), "nvidia-dali")
HALF_RAW: Mapping[str, str | float] = {"write_mode": "proportion", "compress_probability": 0.5, "max_resolution": 500}

PEERS = {
    OURS: Peer("", "shards", "penstock", "this project's loader"),
    PIXELS: Peer("", "shards", "penstock", 'the same with data.cache = "pixels", cache filled', {"cache": "pixels"}),
    "dali": Peer(DALI, "shards", "dali", "the graph of DALI's examples, with readers.webdataset"),
    "torchvision-pil": Peer("torchvision", "folder", "torchvision", "ImageFolder and PIL", {"decode": "pil"}),
    "torchvision-tensor": Peer(
        "torchvision", "folder", "torchvision", "decode_image and v2 on uint8 tensors", {"decode": "tensor"}
    ),
    "webdataset": Peer("webdataset", "shards", "webdataset", "WebDataset with PIL and torchvision's transforms"),
    "timm": Peer("timm", "folder", "timm", "create_loader"),
    "ffcv": Peer("ffcv", "own", "ffcv", "all images as JPEG; needs OpenCV and libturbojpeg", {"write_mode": "jpg"}),
    "ffcv-half-raw": Peer(
        "ffcv", "own", "ffcv", "as its ImageNet recipe: at most 500 px, half of the images raw", HALF_RAW
    ),
    "tfdata": Peer("tensorflow-cpu", "own", "tfdata", "TFRecord, decode_and_crop_jpeg"),
    "spdl": Peer("spdl", "folder", "spdl", "threads, FFmpeg's crop and scale; needs FFmpeg's libraries"),
    "litdata": Peer("litdata", "own", "litdata", "StreamingDataset of JPEGs, v2 on uint8 tensors"),
    "mosaicml": Peer("mosaicml-streaming", "own", "mosaicml", "StreamingDataset of JPEGs, PIL, torchvision's v2"),
}
