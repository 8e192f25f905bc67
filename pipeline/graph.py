"""The DALI graph: encoded bytes and the plan's arrays → normalised images. DALI draws no random number here.

One graph serves training and validation; which arrays the plan gives decides which steps it has. Images become crops
of one size on the CPU, by the compiled kernel of `pipeline/resize.py`, or on the GPU, by DALI's operators
(`in_one_pass`). With a GPU `data.gpu_decode` chooses; augmenting and normalising are the GPU's either way.
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
    """Whether the compiled kernel resizes, moves, flips and normalises in one pass, or DALI's operators in turn.

    The kernel is for the CPU only; the operators run on either device, so that tests need no GPU to run them.
    """
    return not on_gpu


def decodes_on_gpu(config: DataConfig, on_gpu: bool) -> bool:
    """Whether a graph whose images come out on the GPU, or not, also decodes there."""
    return on_gpu and config.gpu_decode != "off"


def graph_inputs(params: AugmentParams, config: DataConfig, on_gpu: bool) -> AugmentParams:
    """The arrays that the graph takes for these parameters, by name; each has one row a sample."""
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
    """(size,) uint8 arrays as DALI takes them: without a copy, and without its checks of each, 10 µs a sample."""
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
    """A built `nvidia.dali.Pipeline` whose `run()` gives normalised images (n, S, S, 3).

    Args:
        source: called once a batch: n samples as `encoded` makes them, then one array of n rows for each of `names`;
            raises StopIteration at the end. The arrays are not copied: they must live until the batch is out.
        names: of the arrays that `graph_inputs` makes, in the order in which `source` gives them.
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
    """Give a pipeline without a graph its graph; a pipeline without a device may get one for the GPU, which can be
    serialized, not built. Arguments as of `build_graph`."""
    with pipe:
        jpegs, params = inputs(source, names)
        images = decode(jpegs, params, config, on_gpu=decodes_on_gpu(config, on_gpu))
        pipe.set_outputs(finish(images, params, config, image_size=image_size, on_gpu=on_gpu, half=half))


def new_pipeline(config: DataConfig, *, batch_size: int, threads: int, gpu: int | None) -> Pipeline:
    """A DALI pipeline without a graph. Arguments as of `build_graph`."""
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
    """Images, and arrays by name, as nodes. Arguments as of `build_graph`; `copy`: what the source gives need not live
    until the batch is out."""
    from nvidia.dali import fn

    images, *arrays = fn.external_source(source=source, num_outputs=1 + len(names), batch=True, no_copy=not copy)
    return images, dict(zip(names, arrays, strict=True))


def decode(jpegs: Node, params: dict[Name, Node], config: DataConfig, *, on_gpu: bool) -> Node:
    """The planned region of each image: (H, W, 3) uint8, RGB."""
    from nvidia.dali import fn, types

    settings: Arguments = {
        "device": "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,  # as PIL and torchvision: EXIF orientation is not applied
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
    """Decoded regions → resized, augmented, normalised: (S, S, 3). Arguments as of `build_graph`."""
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
            mirror = {"mirror": params["mirror"]}  # in the last operator, in its one kernel; `fn.flip` has one an image
        elif "mirror" in params:
            images = fn.flip(images, horizontal=params["mirror"], vertical=params.get("flip_vertical", 0))
    return normalise(images, params, config, half=half, **mirror)


def normalise(images: Node, params: dict[Name, Node], config: DataConfig, *, half: bool, **mirror: Node) -> Node:
    """Resized images → augmented where the plan has steps, and normalised: (S, S, 3). Arguments as of `build_graph`;
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
