"""A network → an ONNX file's bytes, and such bytes → what onnxruntime computes. Its packages are the extra `onnx`."""

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
    """Raises ValueError with the remedy where a package is not installed."""
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError:
            raise ValueError(f"ONNX needs {package}, which is not installed: uv sync --extra onnx") from None


def onnx_bytes(
    net: nn.Module, images: Tensor, *, metadata: dict[str, str], opset: int | None, dynamic_batch: bool
) -> bytes:
    """An ONNX model from `images` (N, 3, S, S) to `logits` (N, C), float32, weights and metadata inside.

    images: an example; with `dynamic_batch` it has at least 2, and any number can be given later, else just as many.
    opset: version of ONNX's operators, at least `commands.options.MIN_OPSET`; None for torch's default.

    Raises ValueError where torch cannot export the network, or not with this opset, or it is too large for one file.
    """
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    if size_bytes > LIMIT_BYTES:
        raise ValueError(f"an ONNX file holds 2 GB, these weights have {size_bytes / 1e9:.1f}; export .safetensors")
    logging.disable()  # the exporter logs what it then raises, and what it falls back to
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
    except Exception as error:  # of many kinds
        remedy = "try --static" if dynamic_batch else "export .safetensors"
        raise ValueError(f"torch cannot export this network to ONNX ({first_line(error)}); {remedy}") from None
    finally:
        logging.disable(logging.NOTSET)
    assert program is not None
    written = program.model.opset_imports[""]
    if opset not in (None, written):  # it falls back where it cannot convert
        raise ValueError(f"--opset {opset}: torch {torch.__version__} gave {written} in its place; leave it out")
    program.model.metadata_props.update(metadata)
    content: bytes = program.model_proto.SerializeToString()
    return content


def onnx_runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """What onnxruntime computes on the CPU: images → logits. Raises ValueError where it does not take the model."""
    import onnxruntime  # type: ignore[import-untyped]

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds have no common base
        reason = f"onnxruntime {onnxruntime.__version__} does not take this model ({first_line(error)})"
        raise ValueError(f"{reason}; try another --opset") from None

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run
