"""The graph with GPU nodes, built and serialized without a GPU or its driver.

This catches operators and arguments that DALI does not have, a GPU node as a named argument, and a wrong number of
inputs. It does not catch wrong shapes, dtypes or values. The tests also check on which device each operator runs, and
that nothing comes back from the GPU.
"""

from itertools import product
from typing import Any, get_args

import numpy as np
import pytest

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.augment.graph import OPERATIONS
from penstock.pipeline.augment.params import StepArray
from penstock.pipeline.config import DataConfig, Interpolation
from penstock.pipeline.feed import Feed
from penstock.pipeline.graph import define_graph, graph_inputs, new_pipeline
from penstock.pipeline.holes import GRAY
from penstock.pipeline.probe import find_bad
from penstock.recipes import FOLDER, Recipe, recipe_at
from penstock.recipes.config import load_config
from penstock.shards.format import ShardSet
from tests.common.augments import AUGMENTS

SMALL = {"image_size": 40, "val_image_size": 40, "val_resize_size": 46}
RECIPES = {file.stem: load_config(Recipe, file) for file in sorted(FOLDER.glob("*.toml"))}
PHASES = [(name, epoch) for name, recipe in RECIPES.items() for epoch in recipe.phases.start_epochs or (0,)]


def feed_of(shard_set: ShardSet, augment: AugmentConfig | None, config: DataConfig) -> Feed:
    split = shard_set.split("train" if augment else "val")
    return Feed(split=split, config=config, augment=augment, batch_size=12, global_batch_size=24 if augment else 0)


def gpu_graph(feed: Feed, half: bool = True) -> list[Any]:
    """The operators of the loader's graph for a GPU (DALI's objects), which DALI has accepted."""
    planned = feed.batch(0, next(feed.spans(0)), feed.image_size)
    names = list(graph_inputs(planned.params, feed.config, on_gpu=True))
    pipe = new_pipeline(feed.config, batch_size=feed.batch_size, threads=1, gpu=None)
    size = feed.image_size
    define_graph(pipe, lambda: (), names, feed.config, image_size=size, on_gpu=True, half=half)
    assert pipe.serialize()
    (check_devices if feed.config.gpu_decode != "off" else check_half_way)(pipe._ops)
    return list(pipe._ops)


def schema(operator: Any) -> str:
    return str(operator.spec).split()[2].rstrip(":")  # "OpSpec for decoders__Image:"


def arguments(operator: Any) -> dict[str, Any]:
    return dict(operator._op._init_args)


def check_devices(operators: list[Any]) -> None:
    """On the CPU are what is given and splits of it; one decoder takes the images to the GPU; nothing comes back."""
    on_cpu = {schema(op) for op in operators if op._op.device == "cpu"}
    assert on_cpu <= {"ExternalSource", "_conditional__Split"}
    assert [schema(op)[:8] for op in operators if op._op.device == "mixed"] == ["decoders"]
    specs = [op.spec for op in operators]
    made = {spec.OutputName(i) for spec in specs for i in range(spec.NumOutput()) if spec.OutputDevice(i) == "cpu"}
    taken = {spec.InputName(i) for spec in specs for i in range(spec.NumInput()) if spec.InputDevice(i) == "cpu"}
    assert taken <= made, "a copy from the GPU"  # named arguments are among them
    assert [node.device for node in operators[-1].outputs] == ["gpu"]
    assert schema(operators[-1]) == "CropMirrorNormalize"


def check_half_way(operators: list[Any]) -> None:
    """Where the CPU decodes: the decoder and what is in the kernel's place are there, what follows is on the GPU."""
    work = [op for op in operators if schema(op) not in ("ExternalSource", "_conditional__Split")]
    kernel = next(place for place, op in enumerate(work) if schema(op) == "Resize")
    before, after = work[: kernel + 2], work[kernel + 2 :]
    assert [op._op.device for op in before] == ["cpu"] * len(before)
    assert schema(before[0]) == "decoders__ImageSlice"
    assert schema(before[-1]) == "Reshape"  # which only names the axes
    assert {op._op.device for op in after} == {"gpu"}
    assert [node.device for node in operators[-1].outputs] == ["gpu"]
    assert schema(operators[-1]) == "CropMirrorNormalize"


def decoder_of(operators: list[Any]) -> Any:
    return next(op for op in operators if op._op.device == "mixed")


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation(dataset: ShardSet, name: str, half: bool) -> None:
    from nvidia.dali import types

    operators = gpu_graph(feed_of(dataset, AUGMENTS[name], DataConfig(**SMALL)), half)
    assert arguments(operators[-1])["dtype"] == (types.FLOAT16 if half else types.FLOAT)


def test_every_operation_is_among_them(dataset: ShardSet) -> None:
    feeds = [feed_of(dataset, augment, DataConfig(**SMALL)) for augment in AUGMENTS.values()]
    names = {name for feed in feeds for name in feed.batch(0, next(feed.spans(0)), 40).params}
    assert {name.kind for name in names if isinstance(name, StepArray)} == set(OPERATIONS)


@pytest.mark.usefixtures("kernel_in_place")
@pytest.mark.parametrize(("name", "epoch"), PHASES)
def test_every_recipe_and_phase(dataset: ShardSet, name: str, epoch: int) -> None:
    recipe = recipe_at(RECIPES[name], epoch)
    for augment, half in product((recipe.augment, None), (True, False)):
        feed = feed_of(dataset, augment, recipe.data)
        operators = gpu_graph(feed, half)
        resize = next(op for op in operators if schema(op) == "Resize")
        assert arguments(resize)["size"] == [feed.image_size] * 2


@pytest.mark.parametrize("crop", ["crop pad", "crop random_resized", "validation"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_every_filter(dataset: ShardSet, crop: str, interpolation: Any, antialias: bool) -> None:
    config = DataConfig(interpolation=interpolation, antialias=antialias, **SMALL)
    resize = next(op for op in gpu_graph(feed_of(dataset, AUGMENTS[crop], config)) if schema(op) == "Resize")
    kind = {"nearest": "NN", "linear": "LINEAR", "cubic": "CUBIC", "lanczos": "LANCZOS3"}[interpolation]
    assert arguments(resize)["interp_type"].name == f"INTERP_{kind}"
    assert arguments(resize)["antialias"] is antialias


def test_crops_are_mirrored_by_the_last_operator(dataset: ShardSet) -> None:
    """`fn.flip` runs a kernel for each image, so only what needs it has it: vertical flips, and augmentation."""

    def has_flip(name: str) -> bool:
        return "Flip" in {schema(op) for op in gpu_graph(feed_of(dataset, AUGMENTS[name], DataConfig(**SMALL)))}

    assert {name: has_flip(name) for name in ("crop pad", "crop random_resized", "validation")} == {
        "crop pad": False, "crop random_resized": False, "validation": False
    }  # fmt: skip
    assert has_flip("flips in turn")
    assert has_flip("auto rand")


@pytest.fixture
def kernel_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a DALI operator in place of the compiled kernel, since the kernel cannot be serialized."""
    from nvidia.dali import fn, types

    def resize(images: Any, geometry: Any, image_size: int, *, normalise: bool) -> Any:
        assert not normalise
        corner = fn.cast(geometry[:2], dtype=types.FLOAT)
        return fn.resize(images, size=[image_size] * 2, roi_start=corner, roi_end=corner + 1.0)

    monkeypatch.setattr("penstock.pipeline.resize.resize", resize)


@pytest.mark.usefixtures("kernel_in_place")
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("name", AUGMENTS)
def test_the_cpu_may_decode(dataset: ShardSet, name: str, half: bool) -> None:
    """The kernel then flips the images, so the graph must not flip them again."""
    operators = gpu_graph(feed_of(dataset, AUGMENTS[name], DataConfig(gpu_decode="off", **SMALL)), half)
    assert "Flip" not in map(schema, operators)
    assert operators[-1].spec.NumInput() == 1, "the images alone, without a mirror"


@pytest.mark.parametrize("fancy", [True, False])
@pytest.mark.parametrize("gpu_decode", ["whole", "region"])
@pytest.mark.parametrize("augment", [AugmentConfig(), None], ids=["training", "validation"])
def test_the_decoder(dataset: ShardSet, augment: AugmentConfig | None, gpu_decode: Any, fancy: bool) -> None:
    """The codec decodes a region only on request. Otherwise the window is cut out on the GPU, rows before columns."""
    config = DataConfig(gpu_decode=gpu_decode, fancy_upsampling=fancy, hw_decoder_load=0.25, **SMALL)
    operators = gpu_graph(feed_of(dataset, augment, config))
    decoder = decoder_of(operators)
    assert schema(decoder) == {"whole": "decoders__Image", "region": "decoders__ImageSlice"}[gpu_decode]
    cut = decoder if gpu_decode == "region" else next(op for op in operators if schema(op) == "Slice")
    assert cut._op.device == ("mixed" if gpu_decode == "region" else "gpu")
    assert arguments(cut)["axes"] == [0, 1]
    found = {name: arguments(decoder)[name] for name in ("jpeg_fancy_upsampling", "adjust_orientation")}
    assert found == {"jpeg_fancy_upsampling": fancy, "adjust_orientation": False}
    assert arguments(decoder)["hw_decoder_load"] == 0.25


@pytest.mark.parametrize("affinity", [True, False])
@pytest.mark.parametrize("gpu_decode", ["whole", "region"])
def test_threads_are_pinned_only_where_it_is_asked_for(dataset: ShardSet, gpu_decode: Any, affinity: bool) -> None:
    """DALI's executor does not pin its threads by default, its decoder does."""
    config = DataConfig(affinity=affinity, gpu_decode=gpu_decode, **SMALL)
    assert arguments(decoder_of(gpu_graph(feed_of(dataset, None, config))))["affine"] is affinity
    assert new_pipeline(config, batch_size=1, threads=1, gpu=0).set_affinity is affinity
    assert not new_pipeline(config, batch_size=1, threads=1, gpu=None).set_affinity


@pytest.mark.parametrize("gpu_decode", ["whole", "region"])
def test_the_probe_decodes_as_the_graph_does(monkeypatch: pytest.MonkeyPatch, gpu_decode: Any) -> None:
    """The search for bad samples must not use another decoder, in particular not one that may crash."""
    made: list[Any] = []

    def without_device(config: DataConfig, **settings: Any) -> Any:
        made.append(new_pipeline(config, **(settings | {"gpu": None})))
        return made[-1]

    monkeypatch.setattr("penstock.pipeline.probe.new_pipeline", without_device)
    config = DataConfig(gpu_decode=gpu_decode, fancy_upsampling=False, affinity=True)
    region = {"anchor": np.zeros((1, 2), np.int32), "shape": np.full((1, 2), 8, np.int32)}
    with pytest.raises(RuntimeError, match="CUDA"):  # good on the CPU; without a GPU there is none to ask, nor to blame
        find_bad([GRAY], region, config, gpu=0)
    decoder = decoder_of(made[-1]._ops)
    assert schema(decoder) == {"whole": "decoders__Image", "region": "decoders__ImageSlice"}[gpu_decode]
    assert arguments(decoder)["affine"] is True
    assert arguments(decoder)["jpeg_fancy_upsampling"] is False


def test_dali_catches_what_this_file_relies_on(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import fn

    feed = feed_of(dataset, AugmentConfig(grayscale=0.5), DataConfig(**SMALL))
    for wrong in (
        lambda images, matrix, offset: fn.coord_transform(images, M=matrix, T=offset, types="UINT8"),
        lambda images, matrix, offset: fn.coord_transform(images, M=matrix.gpu(), T=offset),
        lambda images, matrix, offset: fn.coord_transform(images, matrix, offset),
        lambda images, matrix, offset: fn.coordinate_transform(images, M=matrix),
    ):
        monkeypatch.setitem(OPERATIONS, "colour", wrong)
        with pytest.raises((AttributeError, KeyError, TypeError, ValueError, RuntimeError)):
            gpu_graph(feed)
