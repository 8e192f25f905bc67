"""`train.py export`: write a trained network for use elsewhere, as a state dict, safetensors or ONNX.

Every export describes how images must be prepared: safetensors and ONNX files in their metadata, a state dict in a JSON
file beside it, as it can hold only tensors.
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypedDict

import click
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.commands.onnx_graph import onnx_bytes, onnx_runner, require_packages
from penstock.commands.options import ExportOptions
from penstock.commands.trained_network import Loaded, load_network
from penstock.model.names import TIMM
from penstock.model.networks import AUXILIARY_HEADS, OWN_NETWORKS
from penstock.shards.format import atomic_write, key_name
from penstock.training import environment
from penstock.training.refusal import told_in_a_line

FORMATS = {".pt": "torch", ".pth": "torch", ".safetensors": "safetensors", ".onnx": "onnx"}
# Settings of [model] that change how a network is initialised or run, but not the network itself.
RUNNING = ("zero_init_residual", "pretrained", "channels_last", "compile", "compile_mode", "sync_batch_norm")
TOLERANCE = 1e-4  # relative to the largest logit; summing float32 in another order changes it by 1e-6 to 1e-5


class Description(TypedDict):
    """What a user of the weights needs to know. mean, std: on the scale 0 … 255, as in recipes. classes: key and name
    of each, in the order of the logits."""

    penstock: str | None
    network: str
    weights: str
    input: str
    output: str
    resize: str
    resize_size: int
    image_size: int
    interpolation: str
    antialias: bool
    mean: list[float]
    std: list[float]
    classes: list[dict[str, str]]


class Building(TypedDict):
    """How to build the network that the weights fit. torchvision, timm: the library's call, None if it builds another
    network. build: Python code to run in this program's folder. model: its settings of [model]."""

    torchvision: str | None
    timm: str | None
    build: str
    model: dict[str, object]


def description(loaded: Loaded) -> Description:
    data, key = loaded.recipe.data, key_name(loaded.classes)
    return {
        "penstock": environment.penstock_version(),
        "network": loaded.recipe.model.name,
        "weights": loaded.weights,
        "input": "images: (N, 3, image_size, image_size) float32, RGB, (pixel - mean) / std, pixels from 0 to 255",
        "output": f"logits: (N, {len(loaded.classes)}) float32; probabilities by {loaded.activation}",
        "resize": "the shorter side to resize_size, then the centre image_size square; EXIF orientation "
        + ("applied" if loaded.oriented else "not applied"),
        "resize_size": data.val_resize_size,
        "image_size": data.val_image_size,
        "interpolation": data.interpolation,
        "antialias": data.antialias,
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": [{key: info.wnid, "name": info.name} for info in loaded.classes],
    }


def export_torch(loaded: Loaded, out: Path) -> str:
    """Write a plain state dict, and its description beside it with .json added to the name. Return how to load it."""
    facts, said = building(loaded)
    sidecar = out.with_name(f"{out.name}.json")
    _write(sidecar, json.dumps({**description(loaded), **facts}, indent=1, ensure_ascii=False).encode() + b"\n")
    stream = io.BytesIO()
    torch.save(state_dict(loaded.net), stream)
    _write(out, stream.getvalue())
    return f"{said}; {sidecar} describes how to prepare images"


def export_safetensors(loaded: Loaded, out: Path) -> str:
    """Write the state dict as safetensors, with the description as metadata. Values that are not text become JSON."""
    import safetensors.torch

    facts, said = building(loaded)
    metadata = {"format": "pt"} | _texts({**description(loaded), **facts})
    _write(out, safetensors.torch.save(state_dict(loaded.net), metadata))
    return f"{said}; its metadata describe how to prepare images"


def export_onnx(loaded: Loaded, out: Path, *, opset: int | None, dynamic_batch: bool) -> str:
    """Write an ONNX graph from `images` to `logits` if onnxruntime agrees with torch. Its metadata are the description.

    `dynamic_batch`: the graph accepts any number of images, otherwise one. `opset`: None for the exporter's default.

    Raises ValueError if a package is missing, the network cannot be exported, or the logits differ.
    """
    require_packages()
    size, examples = loaded.recipe.data.val_image_size, example_images(loaded, 2)
    content = onnx_bytes(
        loaded.net,
        examples if dynamic_batch else examples[:1],
        metadata=_texts(description(loaded)),
        opset=opset,
        dynamic_batch=dynamic_batch,
    )
    noise = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    batches = [noise, examples, examples[:1]] if dynamic_batch else [*noise.split(1), *examples.split(1)]
    largest, difference = compare(loaded.net, onnx_runner(content), batches)
    agreement = f"onnxruntime's logits differ from torch's by at most {difference:.1e}; the largest is {largest:.3g}"
    if not difference <= TOLERANCE * largest:
        raise ValueError(f"{out}: not written, because {agreement}")
    _write(out, content)
    return agreement


def example_images(loaded: Loaded, num: int) -> Tensor:
    """Smooth coloured pictures, normalised: (num, 3, S, S) float32, the same on every call."""
    data = loaded.recipe.data
    coarse = torch.rand(num, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    levels = F.interpolate(coarse, size=data.val_image_size, mode="bicubic").clamp(0, 1).mul(255).round()
    return (levels - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]


@torch.inference_mode()
def compare(net: nn.Module, run: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> tuple[float, float]:
    """The largest logit of `net` and the largest difference of `run` from it, both absolute, over the batches."""
    largest = difference = 0.0
    for images in batches:
        expected, found = net(images), run(images)
        largest = max(largest, expected.abs().max().item())
        difference = max(difference, (found - expected).abs().nan_to_num(nan=torch.inf).max().item())
    return largest, difference


def building(loaded: Loaded) -> tuple[Building, str]:
    """How to build the network: for the description, and as a sentence."""
    model, num_classes = loaded.recipe.model, len(loaded.classes)
    changed: dict[str, object] = {"name": model.name} | {
        field.name: getattr(model, field.name)
        for field in fields(model)
        if field.name not in RUNNING and getattr(model, field.name) != field.default
    }
    arguments = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    is_timms = model.name.startswith(TIMM)
    size = f", {loaded.recipe.data.image_size}" if is_timms and hasattr(loaded.net, "image_size") else ""
    made = f"net = build_model(ModelConfig({arguments}), {num_classes}{size})"
    build = f"from model.config import ModelConfig; from model.networks import build_model; {made}"
    call, problem = library_call(loaded)
    said = (
        f"{problem}. To build it, run in this program's folder: {build}"
        if problem
        else f"{call} loads it and gives the same logits"
    )
    good = None if problem else call
    return {
        "torchvision": None if is_timms else good, "timm": good if is_timms else None, "build": build, "model": changed,
    }, said  # fmt: skip


def library_call(loaded: Loaded) -> tuple[str, str | None]:
    """The call that builds torchvision's or timm's network of this name, and why that is not the same network, or None
    if it is the same."""
    model, num_classes = loaded.recipe.model, len(loaded.classes)
    if model.name in OWN_NETWORKS:
        return "", f"{model.name} is not one of torchvision's networks"
    options: dict[str, object] = {"num_classes": num_classes}
    if model.name.startswith(TIMM):
        from penstock.model.timm_networks import bare_name, create, options_of_shape  # here: timm takes seconds

        options |= options_of_shape(model, getattr(loaded.net, "image_size", None))
        words = ", ".join([repr(bare_name(model)), *(f"{name}={value!r}" for name, value in options.items())])
        call, peer = f"timm.create_model({words})", create(model, options)
    else:
        if model.name in AUXILIARY_HEADS:
            options |= {"aux_logits": model.aux_logits, "transform_input": True, "init_weights": False}
        call = f"torchvision.models.{model.name}({', '.join(f'{name}={value}' for name, value in options.items())})"
        peer = torchvision.models.get_model(model.name, weights=None, **options)
    return call, _difference(loaded, call, peer.eval())


def _difference(loaded: Loaded, call: str, peer: nn.Module) -> str | None:
    """Why the library's network that `call` builds is not the same, or None if it is the same."""
    try:
        peer.load_state_dict(loaded.net.state_dict())
    except RuntimeError:
        return f"{call} has different weights, because the recipe's [model] alters the network"
    largest, difference = compare(loaded.net, peer, [example_images(loaded, 2)])
    if not difference <= TOLERANCE * largest:
        return f"{call} loads it but computes other logits, because the recipe's [model] alters the network"
    return None


def state_dict(net: nn.Module) -> dict[str, Tensor]:
    """The network's state dict on the CPU, with each tensor copied and contiguous."""
    return {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in net.state_dict().items()
    }


def _texts(facts: Mapping[str, object]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write(content)


def run(options: ExportOptions) -> None:
    """Run `train.py export`."""
    out = options.out
    with told_in_a_line(out):
        kind = options.kind or FORMATS.get(out.suffix.lower())
        if kind is None:
            raise ValueError(f"{out}: unknown suffix. Use one of {', '.join(FORMATS)}, or give --format")
        if kind != "onnx" and (options.opset is not None or options.dynamic_batch is not None):
            raise ValueError(f"{out}: --opset, --dynamic-batch and --static apply only to ONNX, not to {kind}")
        loaded = load_network(options.checkpoint, weights=options.weights, device=torch.device("cpu"))
        if out.suffix == loaded.path.suffix and out.resolve().parent == loaded.path.resolve().parent:
            raise ValueError(f"{out}: would lie among the checkpoints and might replace one. Choose another folder")
        match kind:
            case "torch":
                done = export_torch(loaded, out)
            case "safetensors":
                done = export_safetensors(loaded, out)
            case _:
                dynamic_batch = options.dynamic_batch is not False
                done = export_onnx(loaded, out, opset=options.opset, dynamic_batch=dynamic_batch)
    click.echo(
        f"{out}: {loaded.recipe.model.name}, {loaded.weights} weights of {loaded.path}, {len(loaded.classes)} classes"
    )
    click.echo(done)
