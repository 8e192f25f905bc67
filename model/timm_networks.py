"""timm's networks: `ModelConfig` with a name "timm/…" → the network, its input images, its published weights.

This module is imported only for such a name, since importing timm takes seconds. `timm.create_model` builds, downloads,
renames, and resamples positions for another image size.
"""

import math
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.layers import DropPath
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import Tensor, nn

from penstock.model.config import ModelConfig
from penstock.model.heads import heads_of
from penstock.model.names import TIMM, check_timm_name, lacks

INTERPOLATIONS = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos"}  # in [data]

HUB_FILE = "model.safetensors"  # in each of timm's repositories


class Input(NamedTuple):
    """The images on which a network's weights were trained. mean, std: in grey levels 0 … 255. size: the side in
    pixels, None if they are not square. is_fixed: the network is built for one size. crop_pct: the share of the resized
    shorter side that validation crops. interpolation: its name in [data], None for a filter that [data] lacks."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None
    is_fixed: bool
    crop_pct: float
    interpolation: str | None


def bare_name(config: ModelConfig) -> str:
    return config.name.removeprefix(TIMM)


def build_timm_network(config: ModelConfig, num_classes: int, image_size: int | None) -> nn.Module:
    """Build timm's network for `model.networks.build_model`, which applies the options common to all networks."""
    check_timm_name(config.name, timm.list_models())
    if config.aux_logits:
        raise lacks(config.name, "aux_logits")
    options = timm_options(config, image_size)
    net = create(config, options | {"num_classes": num_classes})
    if config.stochastic_depth and not any(isinstance(m, DropPath) and m.drop_prob for m in net.modules()):
        raise lacks(config.name, "stochastic_depth")
    if config.dropout and not any(_drops(module, config.dropout) for module in net.modules()):
        raise lacks(config.name, "dropout")
    if _is_fixed(config):
        built: Any = net
        built.image_size = options.get("img_size", input_of(config).size)
    return net


def timm_options(config: ModelConfig, image_size: int | None) -> dict[str, Any]:
    """The keywords for `timm.create_model` besides the number of classes."""
    wanted = {
        "drop_rate": config.dropout,
        "drop_path_rate": config.stochastic_depth,
        "zero_init_last": config.zero_init_residual,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    return options_of_shape(config, image_size) | given


def options_of_shape(config: ModelConfig, image_size: int | None) -> dict[str, Any]:
    """The keywords of `timm_options` that a trained network also needs."""
    options: dict[str, Any] = {}
    for argument in config.timm_args:
        name, _, text = argument.partition("=")
        try:
            options[name] = tomllib.loads(f"value = {text}")["value"]
        except ValueError:  # a bare word
            options[name] = text
    return options | ({"img_size": image_size} if image_size and _is_fixed(config) else {})


def input_of(config: ModelConfig) -> Input:
    """The images for the weights that `config.pretrained` names, or else for the network's default weights.

    Raises ValueError for an unknown network.
    """
    check_timm_name(config.name, timm.list_models())
    about = published_weights(config).get(tag_of(config)) or get_pretrained_cfg(bare_name(config))
    assert about is not None
    _, height, width = about.input_size
    return Input(
        mean=tuple(round(255 * share, 4) for share in about.mean),
        std=tuple(round(255 * share, 4) for share in about.std),
        size=height if height == width else None,
        is_fixed=_is_fixed(config),
        crop_pct=about.crop_pct,
        interpolation=INTERPOLATIONS.get(about.interpolation),
    )


def resize_size(image_size: int, crop_pct: float) -> int:
    """The length to which timm's validation resizes the shorter side (timm.data.transforms_factory)."""
    return math.floor(image_size / crop_pct)


def published_weights(config: ModelConfig) -> dict[str, Any]:
    """timm's description of each of the network's published weights, by tag. "DEFAULT" is the first."""
    found = {
        about.tag or "": about
        for about in get_arch_pretrained_cfgs(bare_name(config)).values()
        if about.url or about.hf_hub_id
    }
    first = get_pretrained_cfg(bare_name(config))
    return ({"DEFAULT": first} if first and found else {}) | {tag: about for tag, about in found.items() if tag}


def tag_of(config: ModelConfig) -> str:
    """`pretrained` as a tag: "a1_in1k", "resnet50.a1_in1k" and "timm/resnet50.a1_in1k" all give "a1_in1k"."""
    return config.pretrained.removeprefix(TIMM).removeprefix(f"{bare_name(config)}.")


def download(config: ModelConfig, about: Any, image_size: int | None) -> dict[str, Tensor]:
    """Download published weights as the network's state dict, with their own classes, for images of this size.

    Raises the errors of the download.
    """
    if about.hf_hub_id:
        _require_hub(about.hf_hub_id, about.hf_hub_filename or HUB_FILE)
    options = options_of_shape(config, image_size) | {"num_classes": about.num_classes}
    net = timm.create_model(bare_name(config), pretrained=True, pretrained_cfg=about, **options)
    state: dict[str, Tensor] = net.state_dict()
    return state


def url_of(about: Any) -> str:
    """The URL at which a browser finds the file of `download`."""
    if not about.hf_hub_id:
        return str(about.url)
    return f"https://huggingface.co/{about.hf_hub_id}/resolve/main/{about.hf_hub_filename or HUB_FILE}"


def classes_of(about: Any) -> tuple[tuple[str, str], ...] | None:
    """WordNet's key and the name of each class of published weights; None if they are not one of ImageNet's sets."""
    subset = infer_imagenet_subset(about.to_dict())
    if not subset:
        return None
    names: Any = ImageNetInfo(subset)
    return tuple((names.index_to_label_name(i), names.index_to_description(i)) for i in range(names.num_classes()))


def converted(config: ModelConfig, net: nn.Module, weights: Mapping[str, object]) -> Mapping[str, object]:
    """The tensors of a file as timm's loader converts them for `net`: names of other programs changed, positions
    resampled for the image size. Returns `weights` if there is nothing to convert, or if timm cannot load them."""
    state, heads = net.state_dict(), heads_of(net)
    body = [name for name in state if not any(name.startswith(f"{head}.") for head in heads.values())]
    if all(isinstance(theirs := weights.get(name), Tensor) and theirs.shape == state[name].shape for name in body):
        return weights
    rows = weights.get(f"{heads.get('')}.weight")
    about = get_pretrained_cfg(bare_name(config))
    num_classes = len(rows) if isinstance(rows, Tensor) else about.num_classes if about else 1000
    options = options_of_shape(config, getattr(net, "image_size", None)) | {"num_classes": num_classes}
    source = {"state_dict": dict(weights), "num_classes": num_classes, "custom_load": False}
    try:
        made = timm.create_model(bare_name(config), pretrained=True, pretrained_cfg_overlay=source, **options)
    except Exception:  # any kind, depending on the file; the caller then reports the names and shapes
        return weights
    resampled: dict[str, object] = made.state_dict()
    return resampled


def _require_hub(repository: str, file: str) -> None:
    """Raises OSError at once if the file is not cached and the hub cannot be reached; huggingface_hub itself would try
    for a minute."""
    if hub.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(repository, file, hub.HF_HUB_CACHE), str):
        return
    with suppress(HTTPError):  # the hub is reachable: it answers
        urlopen(Request(hub.ENDPOINT, method="HEAD"), timeout=10).close()


def _is_fixed(config: ModelConfig) -> bool:
    about = get_pretrained_cfg(bare_name(config))
    free = any(argument.partition("=")[0] == "dynamic_img_size" for argument in config.timm_args)
    return bool(about and about.fixed_input_size and not free)


def create(config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    """Call `timm.create_model` with the options. Raises ValueError if it lacks one, or refuses its value."""
    settings = {"drop_rate": "dropout", "drop_path_rate": "stochastic_depth", "zero_init_last": "zero_init_residual"}
    try:
        net: nn.Module = timm.create_model(bare_name(config), **options)
    except Exception as error:  # of many kinds: assertions, type errors
        lacking = [word for word in settings if isinstance(error, TypeError) and f"'{word}'" in str(error)]
        if lacking == ["zero_init_last"] and not options["zero_init_last"]:  # false is what it does anyway
            return create(config, {name: value for name, value in options.items() if name not in lacking})
        if lacking:
            raise lacks(config.name, settings[lacking[0]]) from None
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{config.name}: timm cannot build it with {given}: {reason}") from None
    return net


def _drops(module: nn.Module, rate: float) -> bool:
    return getattr(module, "drop_rate", None) == rate or (isinstance(module, nn.Dropout) and module.p == rate)
