"""The DALI graph: encoded bytes and the plan's arrays → normalised images. DALI draws no random number here.

One graph serves training and validation; which arrays the plan gives decides which steps it has. On the CPU
`pipeline/resize.py` does in one pass what DALI's operators do one after the other on the GPU.
DALI's operators: docs.nvidia.com/deeplearning/dali, "Operation Reference".
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.augment import AugmentParams
from pipeline.config import DataConfig

Source = Callable[[], tuple[Any, ...]]
COLOUR = ("brightness", "contrast", "saturation", "hue")
GEOMETRY = ("roi_start", "roi_end", "shift", "mirror", "flip_vertical")  # on the CPU one array, `geometry`


def graph_inputs(params: AugmentParams, config: DataConfig, on_gpu: bool) -> AugmentParams:
    """The arrays that the graph takes for these parameters, by name; each has one row a sample."""
    if on_gpu:
        return params
    from pipeline.resize import geometry

    rows = geometry(params, interpolation="linear", antialias=True, mean=config.mean, std=config.std)
    return {name: values for name, values in params.items() if name not in GEOMETRY} | {"geometry": rows}


def encoded(views: list[np.ndarray]) -> Any:
    """(size,) uint8 arrays as DALI takes them: without a copy, and without its checks of each, 10 µs a sample."""
    from nvidia.dali.tensors import TensorCPU, TensorListCPU

    return TensorListCPU([TensorCPU(view, "") for view in views], "")


def build_graph(
    source: Source,
    names: Sequence[str],
    config: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    threads: int,
    gpu: int | None,
    half: bool,
) -> Any:
    """A built `nvidia.dali.Pipeline` whose `run()` gives normalised images (n, S, S, 3).

    Args:
        source: called once a batch: n samples as `encoded` makes them, then one array of n rows for each of `names`;
            raises StopIteration at the end. The arrays are not copied: they must live until the batch is out.
        names: of the arrays that `graph_inputs` makes, in the order in which `source` gives them.
        batch_size: the largest n.
        gpu: device index, or None for the CPU.
        half: images in float16 instead of float32.
    """
    from nvidia.dali import Pipeline, fn, types

    on_gpu = gpu is not None
    pipe = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=gpu,
        prefetch_queue_depth=config.prefetch,
        set_affinity=on_gpu and config.affinity,
        seed=0,
    )
    with pipe:
        jpegs, *arrays = fn.external_source(source=source, num_outputs=1 + len(names), batch=True, no_copy=True)
        params = dict(zip(names, arrays, strict=True))
        decode_on_gpu: dict[str, Any] = (
            {"hw_decoder_load": config.hw_decoder_load, "jpeg_fancy_upsampling": True} if on_gpu else {}
        )
        images = fn.decoders.image_slice(
            jpegs,
            params["anchor"],
            params["shape"],
            axes=[0, 1],
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # as PIL and torchvision: EXIF orientation is not applied
            **decode_on_gpu,
        )
        normalised = not on_gpu and not half and "brightness" not in params
        if on_gpu:
            images = _resize_on_gpu(images, params, image_size)
        else:
            from pipeline.resize import resize

            images = resize(images, params["geometry"], image_size, normalise=normalised)
        if "brightness" in params:
            images = fn.color_twist(images, **{name: params[name] for name in COLOUR})
        if not normalised:
            images = fn.crop_mirror_normalize(
                images,
                dtype=types.FLOAT16 if half else types.FLOAT,
                output_layout="HWC",
                mean=list(config.mean),
                std=list(config.std),
            )
        pipe.set_outputs(images)
    pipe.build()
    return pipe


def _resize_on_gpu(images: Any, params: dict[str, Any], image_size: int) -> Any:
    from nvidia.dali import fn, types

    side = [image_size, image_size]
    roi = {name: params[name] for name in ("roi_start", "roi_end") if name in params}
    images = fn.resize(images, size=side, interp_type=types.INTERP_LINEAR, antialias=True, **roi)
    if "shift" in params:
        images = fn.slice(images, start=params["shift"], shape=side, axes=[0, 1], out_of_bounds_policy="pad")
    if "mirror" in params:
        images = fn.flip(images, horizontal=params["mirror"], vertical=params.get("flip_vertical", 0))
    return images
