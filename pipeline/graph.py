"""The DALI graph: encoded bytes and the plan's arrays → normalised images. DALI draws no random numbers here.

One graph serves training and validation; the arrays of the plan decide its steps. Images are cropped and resized on
the CPU by the compiled kernel of `pipeline/resize.py`, or on the GPU by DALI's operators (`in_one_pass`). With a GPU,
`data.gpu_decode` chooses between the two, and the GPU augments and normalises in both cases.
DALI's operators: docs.nvidia.com/deeplearning/dali, "Operation Reference".
"""

from collections.abc import Callable, Sequence

import numpy as np

from penstock.pipeline.augment import AugmentParams
from penstock.pipeline.augment.graph import augment_images
from penstock.pipeline.augment.params import Name, StepArray
from penstock.pipeline.config import DataConfig
from penstock.pipeline.dali import Arguments, Inputs, Node, Pipeline, TensorList

Source = Callable[[], Inputs]
GEOMETRY = ("roi_start", "roi_end", "shift", "mirror", "flip_vertical")  # in one pass one array, `geometry`


def in_one_pass(on_gpu: bool) -> bool:
    """Whether the compiled kernel resizes, moves, flips and normalises in one pass. Otherwise DALI's operators do it,
    one after the other.

    The kernel is for the CPU only. The operators run on either device, so that tests can run them without a GPU.
    """
    return not on_gpu


def decodes_on_gpu(config: DataConfig, on_gpu: bool) -> bool:
    """Whether the graph decodes on the GPU. `on_gpu`: whether its output is there."""
    return on_gpu and config.gpu_decode != "off"


def graph_inputs(params: AugmentParams, config: DataConfig, on_gpu: bool) -> AugmentParams:
    """The graph's input arrays for these parameters, by name. Each has one row for each sample."""
    arrays = {
        name: values for name, values in params.items() if name in ("anchor", "shape") or isinstance(name, StepArray)
    }
    if not in_one_pass(decodes_on_gpu(config, on_gpu)):
        return arrays | {name: params[name] for name in GEOMETRY if name in params}
    from penstock.pipeline.resize import geometry

    rows = geometry(
        params, interpolation=config.interpolation, antialias=config.antialias, mean=config.mean, std=config.std
    )
    return arrays | {"geometry": rows}


def encoded(views: list[np.ndarray]) -> TensorList:
    """Pass (size,) uint8 arrays to DALI without a copy, and without its check of each sample, which takes 10 µs."""
    from nvidia.dali.tensors import TensorCPU, TensorListCPU

    samples = [TensorCPU(view, "") for view in views]
    return TensorListCPU(samples, "", contiguous=False)  # type: ignore[call-overload]  # else it copies all of them


def build_graph(
    source: Source,
    names: Sequence[Name],
    config: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    threads: int,
    gpu: int | None,
    half: bool,
) -> Pipeline:
    """Build an `nvidia.dali.Pipeline`. Its `run()` returns normalised images (n, S, S, 3).

    Args:
        source: called once for each batch. Returns n samples as `encoded` makes them, then an array of n rows for each
            of `names`. Raises StopIteration at the end. The arrays are not copied: they must live until the batch has
            come out.
        names: the names of the arrays of `graph_inputs`, in the order in which `source` returns them.
        batch_size: the largest n.
        gpu: device index, or None for the CPU.
        half: images in float16 instead of float32.
    """
    pipe = new_pipeline(config, batch_size=batch_size, threads=threads, gpu=gpu)
    define_graph(pipe, source, names, config, image_size=image_size, on_gpu=gpu is not None, half=half)
    pipe.build()
    return pipe


def define_graph(
    pipe: Pipeline,
    source: Source,
    names: Sequence[Name],
    config: DataConfig,
    *,
    image_size: int,
    on_gpu: bool,
    half: bool,
) -> None:
    """Define the graph of a new pipeline. A pipeline without a device may get a graph for the GPU, which can be
    serialized but not built. Arguments as for `build_graph`."""
    with pipe:
        jpegs, params = inputs(source, names)
        images = decode(jpegs, params, config, on_gpu=decodes_on_gpu(config, on_gpu))
        pipe.set_outputs(finish(images, params, config, image_size=image_size, on_gpu=on_gpu, half=half))


def new_pipeline(config: DataConfig, *, batch_size: int, threads: int, gpu: int | None) -> Pipeline:
    """A DALI pipeline without a graph. Arguments as for `build_graph`."""
    from nvidia.dali import Pipeline

    return Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=gpu,
        prefetch_queue_depth=config.prefetch,
        set_affinity=gpu is not None and config.affinity,
        seed=0,
    )


def inputs(source: Source, names: Sequence[Name], copy: bool = False) -> tuple[Node, dict[Name, Node]]:
    """The images, and the arrays by name, as nodes. Arguments as for `build_graph`. `copy`: copy the source's arrays,
    so that they need not live until the batch has come out."""
    from nvidia.dali import fn

    images, *arrays = fn.external_source(source=source, num_outputs=1 + len(names), batch=True, no_copy=not copy)
    return images, dict(zip(names, arrays, strict=True))


def decode(jpegs: Node, params: dict[Name, Node], config: DataConfig, *, on_gpu: bool) -> Node:
    """The planned region of each image: (H, W, 3) uint8, RGB."""
    from nvidia.dali import fn, types

    settings: Arguments = {
        "device": "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,  # like PIL and torchvision, do not apply the EXIF orientation
    }
    if on_gpu:
        settings |= {
            "device": "mixed",
            "hw_decoder_load": config.hw_decoder_load,
            "jpeg_fancy_upsampling": config.fancy_upsampling,
            "affine": config.affinity,
        }
    if in_one_pass(on_gpu) or config.gpu_decode == "region":
        return fn.decoders.image_slice(jpegs, params["anchor"], params["shape"], axes=[0, 1], **settings)
    images = fn.decoders.image(jpegs, **settings)
    return fn.slice(images, start=params["anchor"], shape=params["shape"], axes=[0, 1])


def finish(
    images: Node, params: dict[Name, Node], config: DataConfig, *, image_size: int, on_gpu: bool, half: bool
) -> Node:
    """Decoded regions → resized, augmented, normalised: (S, S, 3). Arguments as for `build_graph`."""
    from nvidia.dali import fn

    augmented = any(isinstance(name, StepArray) for name in params)
    mirror: Arguments = {}
    if in_one_pass(decodes_on_gpu(config, on_gpu)):
        from penstock.pipeline.resize import resize

        normalised = not (on_gpu or half or augmented)
        images = resize(images, params["geometry"], image_size, normalise=normalised)
        if normalised:
            return images
        if on_gpu:
            images = fn.reshape(images, layout="HWC").gpu()
    else:
        images = _resize(images, params, image_size, config)
        if "mirror" in params and not augmented and "flip_vertical" not in params:
            mirror = {
                "mirror": params["mirror"]
            }  # in the last operator's single kernel; `fn.flip` starts one per image
        elif "mirror" in params:
            images = fn.flip(images, horizontal=params["mirror"], vertical=params.get("flip_vertical", 0))
    return normalise(images, params, config, half=half, **mirror)


def normalise(images: Node, params: dict[Name, Node], config: DataConfig, *, half: bool, **mirror: Node) -> Node:
    """Resized images → augmented if the plan has steps, and normalised: (S, S, 3). Arguments as for `build_graph`.
    `mirror`: an argument of DALI's operator."""
    from nvidia.dali import fn, types

    if any(isinstance(name, StepArray) for name in params):
        images = augment_images(images, params, config)
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT16 if half else types.FLOAT,
        output_layout="HWC",
        mean=list(config.mean),
        std=list(config.std),
        **mirror,
    )


def _resize(images: Node, params: dict[Name, Node], image_size: int, config: DataConfig) -> Node:
    from nvidia.dali import fn, types

    side = [image_size, image_size]
    roi = {name: params[name] for name in ("roi_start", "roi_end") if name in params}
    filters = {"nearest": "NN", "linear": "LINEAR", "cubic": "CUBIC", "lanczos": "LANCZOS3"}
    kind = getattr(types, f"INTERP_{filters[config.interpolation]}")
    interpolation = {"interp_type": kind, "antialias": config.antialias}
    images = fn.resize(images, size=side, **interpolation, **roi)
    if "shift" in params:
        images = fn.slice(images, start=params["shift"], shape=side, axes=[0, 1], out_of_bounds_policy="pad")
    return images
