"""Export a network to the bytes of an ONNX file, and run such bytes in onnxruntime. Needs the extra `onnx`."""

import logging
import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

from penstock.training.refusal import first_line

LIMIT_BYTES = 2_000_000_000  # protobuf's limit for one file is 2^31, graph and weights together
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Raise ValueError, with the command that installs it, if a package is missing."""
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError:
            raise ValueError(f"ONNX needs {package}, which is not installed. Run: uv sync --extra onnx") from None


def onnx_bytes(
    net: nn.Module, images: Tensor, *, metadata: dict[str, str], opset: int | None, dynamic_batch: bool
) -> bytes:
    """Export an ONNX model from `images` (N, 3, S, S) to `logits` (N, C), float32, with weights and metadata inside.

    images: an example batch. With `dynamic_batch` it needs at least 2 images, and the model accepts any number.
        Otherwise the model accepts exactly as many as the example has.
    opset: the operator set version, at least `commands.options.MIN_OPSET`; None for torch's default.

    Raises ValueError if torch cannot export the network, or not with this opset, or it is too large for one file.
    """
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    if size_bytes > LIMIT_BYTES:
        raise ValueError(
            f"an ONNX file holds at most 2 GB, but these weights have {size_bytes / 1e9:.1f} GB. Export .safetensors"
        )
    logging.disable()  # the exporter logs its errors before it raises them, and its fallbacks
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None,
                opset_version=opset,
            )
    except Exception as error:  # torch raises many types
        remedy = "Try --static" if dynamic_batch else "Export .safetensors"
        raise ValueError(f"torch cannot export this network to ONNX ({first_line(error)}). {remedy}") from None
    finally:
        logging.disable(logging.NOTSET)
    assert program is not None
    written = program.model.opset_imports[""]
    if opset not in (None, written):  # torch falls back to another version if it cannot convert
        raise ValueError(f"--opset {opset}: torch {torch.__version__} can only write opset {written}. Omit --opset")
    program.model.metadata_props.update(metadata)
    content: bytes = program.model_proto.SerializeToString()
    return content


def onnx_runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function images → logits that runs onnxruntime on the CPU. Raises ValueError if it rejects the model."""
    import onnxruntime  # type: ignore[import-untyped]

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        reason = f"onnxruntime {onnxruntime.__version__} rejects this model ({first_line(error)})"
        raise ValueError(f"{reason}. Try another --opset") from None

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run
