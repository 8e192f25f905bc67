"""The programs that are compared: what each is, and what it reads."""

from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Literal, NamedTuple

OURS, PIXELS = "penstock", "penstock-pixels"


class Peer(NamedTuple):
    """One program.

    package: the distribution whose version is shown; empty for this project.
    reads: a folder of JPEGs by class, our shards, or files of its own, which its adapter's `prepare` makes.
    adapter: its file in adapters/; several peers may be one program with other `options`.
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
    PIXELS: Peer("", "shards", "penstock", 'the same with data.cache = "pixels", filled', {"cache": "pixels"}),
    "dali": Peer(DALI, "shards", "dali", "the graph of DALI's examples, on readers.webdataset"),
    "torchvision-pil": Peer("torchvision", "folder", "torchvision", "ImageFolder and PIL", {"decode": "pil"}),
    "torchvision-tensor": Peer(
        "torchvision", "folder", "torchvision", "decode_image and v2 on uint8 tensors", {"decode": "tensor"}
    ),
    "webdataset": Peer("webdataset", "shards", "webdataset", "with PIL and torchvision's transforms"),
    "timm": Peer("timm", "folder", "timm", "create_loader"),
    "ffcv": Peer("ffcv", "own", "ffcv", "all as JPEG; needs OpenCV, libturbojpeg", {"write_mode": "jpg"}),
    "ffcv-half-raw": Peer("ffcv", "own", "ffcv", "its ImageNet recipe's: at most 500 px, half of them raw", HALF_RAW),
    "tfdata": Peer("tensorflow-cpu", "own", "tfdata", "TFRecord, decode_and_crop_jpeg"),
    "spdl": Peer("spdl", "folder", "spdl", "threads, FFmpeg's crop and scale; needs FFmpeg's libraries"),
    "litdata": Peer("litdata", "own", "litdata", "StreamingDataset of JPEGs, v2 on uint8 tensors"),
    "mosaicml": Peer("mosaicml-streaming", "own", "mosaicml", "StreamingDataset of JPEGs, PIL, torchvision's v2"),
}
