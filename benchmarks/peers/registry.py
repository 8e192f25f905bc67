"""The programs that are compared: what each is, where its package is, and what it reads."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

OURS = "penstock"
HERE = Path(__file__).parent


class Peer(NamedTuple):
    """One program.

    package: the distribution whose version is shown; empty for this project.
    reads: a folder of JPEGs by class, our shards, or files of its own, which its adapter's `prepare` makes.
    adapter: its file in adapters/, if not of the peer's name; several peers may be one program with other `options`.
    system: what it needs besides, that no Python package brings.
    """

    package: str
    reads: Literal["folder", "shards", "own"]
    about: str
    adapter: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    system: str = ""


def _installed_dali() -> str:
    """Its package is for one CUDA or the other."""
    names = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
    return next((name for name in names if any(metadata.distributions(name=name))), names[0])


PEERS = {
    OURS: Peer("", "shards", "this project's loader"),
    "dali": Peer(_installed_dali(), "shards", "the graph of DALI's examples, on readers.webdataset"),
    "torchvision-pil": Peer("torchvision", "folder", "ImageFolder and PIL", "torchvision", {"decode": "pil"}),
    "torchvision-tensor": Peer(
        "torchvision", "folder", "decode_image and v2 on uint8 tensors", "torchvision", {"decode": "tensor"}
    ),
    "webdataset": Peer("webdataset", "shards", "with PIL and torchvision's transforms"),
    "timm": Peer("timm", "folder", "create_loader"),
    "ffcv": Peer(
        "ffcv", "own", "all images as JPEG, of their size", options={"write_mode": "jpg"}, system="OpenCV, libturbojpeg"
    ),
    "ffcv-half-raw": Peer(
        "ffcv",
        "own",
        "its ImageNet recipe's file: at most 500 px, every other image raw",
        adapter="ffcv",
        options={"write_mode": "proportion", "compress_probability": 0.5, "max_resolution": 500},
        system="OpenCV, libturbojpeg",
    ),
    "tfdata": Peer("tensorflow-cpu", "own", "TFRecord, decode_and_crop_jpeg"),
    "spdl": Peer("spdl", "folder", "threads, FFmpeg's decoder, crop and scale", system="FFmpeg's libraries"),
    "litdata": Peer("litdata", "own", "StreamingDataset of JPEGs, v2 transforms on uint8 tensors"),
    "mosaicml": Peer("mosaicml-streaming", "own", "StreamingDataset of JPEGs, PIL and torchvision's transforms"),
}  # fmt: skip


def adapter_of(name: str) -> str:
    return PEERS[name].adapter or name


def adapter_file(name: str) -> Path:
    return HERE / "adapters" / f"{adapter_of(name)}.py"


def requirements(name: str) -> Path | None:
    """What its own environment holds; None where the project's environment has it."""
    path = HERE / "requirements" / f"{adapter_of(name)}.txt"
    return path if path.exists() else None
