"""Find the samples that DALI cannot decode, and decode single images as DALI does.

Any bad sample breaks DALI's pipeline, and DALI does not name all of them. A header that DALI 2.4 cannot parse in a
large batch (100 images) ends the process with a segmentation fault. So headers are checked before DALI gets them, and
pixels after DALI has failed, or one image at a time in advance (`Decoder`).
"""

from contextlib import suppress
from dataclasses import replace
from io import BytesIO

import numpy as np

from penstock.pipeline.augment import AugmentParams
from penstock.pipeline.config import DataConfig
from penstock.pipeline.dali import Pipeline, TensorList
from penstock.pipeline.graph import decode, inputs, new_pipeline
from penstock.pipeline.gray import with_unit_factor


def bad_header(view: np.ndarray, height: int, width: int) -> str | None:
    """Check an image's header with the parser that DALI uses, in 5 µs. Return the fault, or None.

    Args:
        view: (size,) uint8. height, width: the expected size in pixels.
    """
    from nvidia.nvimgcodec import CodeStream

    try:
        stream = CodeStream(view)
        found = stream.height, stream.width
    except Exception as error:  # so far always RuntimeError
        return f"nvImageCodec: {(str(error) or type(error).__name__).splitlines()[0]}"
    return None if found == (height, width) else f"is {found[0]}×{found[1]} pixels, the table says {height}×{width}"


def raised_by_dali(error: RuntimeError) -> bool:
    """Whether DALI raised this while it made or ran a graph, and not code that DALI calls (reader, compiler)."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("nvidia.dali")


def find_bad(views: list[np.ndarray], params: AugmentParams, config: DataConfig, gpu: int | None) -> dict[int, str]:
    """The places in a batch with a planned region that DALI cannot decode, and DALI's complaint about each in one line.

    DALI's decoder library first decodes every whole image; it does not stop at the first fault. DALI then gets each
    failed image alone. If that finds no fault, DALI gets every image alone, which costs 10 ms each.

    Args:
        views: n (size,) uint8 arrays. params: `anchor` and `shape` of these samples.
        config: the decoder's settings. gpu: device index, for images that only the GPU's decoder rejects; or None.
    """
    for places in (_suspects(views), range(len(views))):
        for device in dict.fromkeys([None, gpu]):
            complaints = {
                i: _decode_alone(views[i], params["anchor"][i], params["shape"][i], config, device) for i in places
            }
            bad = {i: complaint for i, complaint in complaints.items() if complaint is not None}
            if bad:
                return bad
    return {}


def _suspects(views: list[np.ndarray]) -> list[int]:
    from nvidia import nvimgcodec

    backends = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
    decoder = nvimgcodec.Decoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends)
    return [i for i, view in enumerate(views) if decoder.decode([view.tobytes()])[0] is None]


def _decode_alone(
    data: np.ndarray, anchor: np.ndarray, shape: np.ndarray, config: DataConfig, gpu: int | None
) -> str | None:
    """DALI's complaint about this region, decoded as in the graph; None if it decodes.

    Args:
        data: (size,) uint8. anchor, shape: (2,) int32, row and column.
    """
    if gpu is not None:
        data = with_unit_factor(data)
    try:
        Decoder(config, gpu).run(data, anchor, shape)
    except ValueError as error:
        return str(error)
    return None


def jpeg_decoders() -> list[str]:
    """The kinds of nvImageCodec's decoders that decode an ordinary JPEG on this machine, the fastest first.

    "hardware" is the JPEG engine of a GPU, "cuda" are kernels, "cpu" is libjpeg-turbo. DALI uses them
    (`decoders_used`). Starts CUDA on the first GPU. Raises ImportError if nvImageCodec or Pillow is not installed.
    """
    from nvidia import nvimgcodec
    from PIL import Image

    stream, kind = BytesIO(), nvimgcodec.BackendKind
    Image.new("RGB", (256, 256)).save(stream, "JPEG")
    found = []
    for name, kinds, gpu in (
        ("hardware", [kind.HW_GPU_ONLY], 0),
        ("cuda", [kind.GPU_ONLY, kind.HYBRID_CPU_GPU], 0),
        ("cpu", [kind.CPU_ONLY], nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY),
    ):
        with suppress(RuntimeError):  # "Could not create decoder" if there is none
            decoder = nvimgcodec.Decoder(device_id=gpu, backends=[nvimgcodec.Backend(one) for one in kinds])
            if decoder.decode([stream.getvalue()])[0] is not None:
                found.append(name)
    return found


class Decoder:
    """The graph's decoder for one image at a time, so that an error belongs to that image. After an error, the next
    image costs 7 ms more."""

    def __init__(self, config: DataConfig, gpu: int | None = None) -> None:
        self._config, self._gpu = replace(config, prefetch=1), gpu
        self._pipe: Pipeline = None
        self._inputs: tuple[list[np.ndarray], ...] = ()

    def pixels(self, data: np.ndarray, height: int, width: int) -> np.ndarray:
        """The whole image, (height, width, 3) uint8, RGB. `data`: (size,) uint8. Raises ValueError as `run`."""
        output = self.run(data, np.zeros(2, np.int32), np.array([height, width], np.int32))
        return np.array(output.as_cpu().at(0))

    def run(self, data: np.ndarray, anchor: np.ndarray, shape: np.ndarray) -> TensorList:
        """Decode one region, as a DALI list of one. `data`: (size,) uint8. `anchor`, `shape`: (2,) int32, row, column.

        Raises ValueError with DALI's complaint in one line.
        """
        self._inputs = [data], [anchor], [shape]  # DALI reads them uncopied
        pipe, self._pipe = self._pipe or self._build(), None
        try:
            (output,) = pipe.run()
        except RuntimeError as error:
            complaint = str(error).rpartition("encountered:")[2].strip()  # before it is a trace of the graph
            raise ValueError(complaint.splitlines()[0].rstrip(" :") if complaint else "unknown error") from None
        self._pipe = pipe
        return output

    def _build(self) -> Pipeline:
        pipe = new_pipeline(self._config, batch_size=1, threads=1, gpu=self._gpu)
        with pipe:
            jpegs, region = inputs(lambda: self._inputs, ("anchor", "shape"))
            pipe.set_outputs(decode(jpegs, region, self._config, on_gpu=self._gpu is not None))
        pipe.build()
        return pipe
