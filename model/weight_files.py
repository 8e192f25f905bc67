"""Read or download pretrained weights: `ModelConfig.pretrained` → the tensors, and the classes of their head.

A source is one of these:
- a file: a checkpoint of this program, a torch state dict or a .safetensors file;
- a run's directory: its best checkpoint, or the last if there is no best;
- a name of weights that torchvision or timm publish for the network (`DEFAULT`, `IMAGENET1K_V2`, `a1_in1k` …).
  torch.hub or huggingface_hub download them once and keep them.
Nothing in a file can run code: `weights_only=True`.
"""

import hashlib
import json
import pickle
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torchvision.models import WeightsEnum

from penstock.model.config import ModelConfig
from penstock.model.names import TIMM
from penstock.model.networks import OWN_NETWORKS

CHECKPOINT_FORMAT = "penstock-checkpoint-1"
Classes = tuple[tuple[str, str], ...]  # key and readable name of the class of each row of a head
ABOUT = ("model", "mean", "std")
# Other programs (torchvision's references, timm, Lightning, tutorials) keep the state dict under one of these keys.
NESTED_UNDER = ("model", "state_dict", "model_state_dict", "net", "network", "weights")


class Source(NamedTuple):
    """Weights that were read. origin: where they come from, in words. classes: of the head's rows, None if unknown.
    about: further facts, each if known: `model`, the settings of the network; `mean` and `std` of the images, in grey
    levels."""

    origin: str
    weights: Mapping[str, object]
    classes: Classes | None = None
    about: Mapping[str, object] = {}


class Published(NamedTuple):
    """Weights that a library publishes. url: of their file. fetch: downloads them, once. levels: `mean` and `std` of
    the images, in grey levels; empty for timm, where the network has them."""

    origin: str
    url: str
    fetch: Callable[[], Mapping[str, object]]
    classes: Callable[[], Classes | None]
    levels: Callable[[], Mapping[str, object]] = dict


def read_weights(config: ModelConfig, image_size: int | None = None) -> Source:
    """Read or download the weights that `config.pretrained` names.

    image_size: the size for which a timm network was built, if it accepts only one size.

    Raises ValueError if it is neither such a file nor weights of this network, or cannot be downloaded or read.
    """
    source = config.pretrained
    library, name, published = _published(config, image_size)
    if name in published:
        one = published[name]
        return Source(one.origin, _fetched(one, source, library), one.classes(), one.levels())
    path = Path(source).expanduser()
    if path.is_dir():  # a run's directory
        path = next(filter(Path.is_file, (path / "checkpoints" / name for name in ("best.pt", "last.pt"))), path)
        if path.is_dir():
            raise ValueError(
                f"pretrained = {source}: not a run's directory (no checkpoints/best.pt or last.pt); give a file"
            )
    if path.is_file():
        read = _read_file(path)
        same = next((one for one in published.values() if _is_download(path, one.url)), None)
        if not same:
            return read
        return read._replace(origin=f"{path} ({same.origin})", classes=same.classes(), about=same.levels())
    if not published:
        raise ValueError(f"pretrained = {source}: no such file; {library} publishes no weights of {config.name}")
    raise ValueError(
        f"pretrained = {source}: neither a file nor one of {library}'s weights of {config.name} "
        f"({', '.join(published)})"
    )


def _published(config: ModelConfig, image_size: int | None) -> tuple[str, str, dict[str, Published]]:
    """The library that publishes weights of the network, `config.pretrained` as its name for them, and all its weights
    by name."""
    source = config.pretrained
    if config.name in OWN_NETWORKS:
        return "torchvision", source, {}
    if config.name.startswith(TIMM):
        from penstock.model import timm_networks as timms  # here: timm takes seconds

        published = {
            tag: Published(
                f"{config.name}.{about.tag}",
                timms.url_of(about),
                partial(timms.download, config, about, image_size),
                partial(timms.classes_of, about),
            )
            for tag, about in timms.published_weights(config).items()
        }
        return "timm", timms.tag_of(config), published
    enum = torchvision.models.get_model_weights(config.name)
    theirs = {
        name: Published(
            str(one), one.url, partial(_of_torchvision, one), partial(_categories, one), partial(_levels, one)
        )
        for name, one in enum.__members__.items()
    }
    return "torchvision", source.removeprefix(f"{enum.__name__}."), theirs  # also ResNet50_Weights.IMAGENET1K_V2


def _of_torchvision(published: WeightsEnum) -> Mapping[str, object]:
    weights: Mapping[str, object] = published.get_state_dict(
        progress=True, check_hash=True, map_location="cpu", weights_only=True
    )
    return weights


def _categories(published: WeightsEnum) -> Classes:
    return tuple((str(label), name) for label, name in enumerate(published.meta["categories"]))


def _levels(published: WeightsEnum) -> Mapping[str, object]:
    """The mean and std of the images, which torchvision has in shares of 1, in grey levels."""
    prepare = published.transforms()
    return {name: [255 * share for share in getattr(prepare, name)] for name in ("mean", "std")}


def _is_download(path: Path, url: str) -> bool:
    """Whether the file is the one that torchvision publishes at `url`. The URL has the first digits of its sha256."""
    name = url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,})\.", name)
    return path.name == name and digits is not None and _sha256(path).startswith(digits[1])


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetched(published: Published, source: str, library: str) -> Mapping[str, object]:
    advice = f"download {published.url} elsewhere and give the file's path"
    try:
        return published.fetch()
    except OSError as error:
        reason = getattr(error, "reason", None) or _first_line(error)
        raise ValueError(f"pretrained = {source}: download failed ({reason}); {advice}") from None
    except Exception as error:  # torch raises many kinds for a damaged file, RuntimeError for a wrong hash
        empty = "empty torch.hub's cache, or " if library == "torchvision" else ""
        raise ValueError(f"pretrained = {source}: {_first_line(error)}; {empty}{advice}") from None


def _read_file(path: Path) -> Source:
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = {name: _json(metadata.get(name, "")) for name in ("classes", *ABOUT)}
            return Source(str(path), weights, _classes_of(said["classes"]), _about(said))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds, depending on where a file is damaged
        whole = "it holds more than tensors and plain values, or is not a torch file; save the network's state_dict()"
        code = isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error)  # torch advises to run the code
        reason = whole if code else f"truncated, or another kind of file ({_first_line(error)})"
        raise ValueError(f"{path}: cannot be read as weights: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    if content.get("format") == CHECKPOINT_FORMAT:
        state = content["state"]
        classes = _classes_of(state.get("classes"))
        recipe = _toml(state.get("recipe", ""))
        data = recipe.get("data")
        about = _about({"model": recipe.get("model"), **(data if isinstance(data, dict) else {})})
        if (average := state.get("ema")) is not None:
            return Source(f"{path} (moving average)", average, classes, about)
        return Source(str(path), state["net"], classes, about)
    for key in NESTED_UNDER:
        if isinstance(content.get(key), dict):
            return Source(f"{path} ({key})", content[key])
    beside = path.with_name(f"{path.name}.json")  # an export's description
    description = _json(beside.read_bytes()) if beside.is_file() else None
    said = description if isinstance(description, dict) else {}
    return Source(str(path), content, _classes_of(said.get("classes")), _about(said))


def _about(said: Mapping[str, object]) -> Mapping[str, object]:
    return {name: said[name] for name in ABOUT if said.get(name)}


def _toml(text: object) -> Mapping[str, object]:
    """The parsed text, empty if it is not TOML."""
    try:
        return tomllib.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}


def _json(text: str | bytes) -> object:
    """The parsed text, None if it is not JSON."""
    try:
        said: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return said


def _classes_of(listed: object) -> Classes | None:
    """The classes that a checkpoint or an export lists; None if it lists none, or something else."""
    if not isinstance(listed, list | tuple):
        return None
    classes = []
    for info in listed:
        if not isinstance(info, dict) or "name" not in info or not {"wnid", "class"} & info.keys():
            return None
        classes.append((str(info["wnid" if "wnid" in info else "class"]), str(info["name"])))
    return tuple(classes) or None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
