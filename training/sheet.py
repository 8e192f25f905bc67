"""Draw pictures for people: a grid of images with captions, and a confusion matrix, as arrays (H, W, 3) uint8."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageFont

MARGIN = 6
CAPTION_LINES = 2

Images = np.ndarray | Sequence[np.ndarray | Path]


def draw_sheet(images: Images, captions: Sequence[str], *, columns: int = 8, cell: int = 160) -> np.ndarray:
    """Draw a grid of images on white, each with its caption below.

    Args:
        images: uint8 RGB; an array (N, H, W, 3), or a sequence of arrays (H, W, 3) of any sizes and of JPEG or PNG
            files. Each is scaled to fit a square of `cell` pixels.
        captions: one per image, with at most two lines. Lines that are too long end with "…".

    Raises ValueError if there are no images, the number of captions differs, or an image is not uint8 RGB.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    pictures = _pictures(images)
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} images and {len(captions)} captions: expected one for each, at least one")
    columns = min(columns, len(pictures))
    # matplotlib includes DejaVu Sans, which has more characters than PIL's own font.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 11)
    line_height = 16
    height = cell + CAPTION_LINES * line_height + MARGIN
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (cell + MARGIN) + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        scale = cell / max(picture.size)
        width, length = (max(round(side * scale), 1) for side in picture.size)
        x, y = MARGIN + i % columns * (cell + MARGIN), MARGIN + i // columns * height
        sheet.paste(picture.resize((width, length)), (x + (cell - width) // 2, y + (cell - length) // 2))
        for line, text in enumerate(caption.split("\n")[:CAPTION_LINES]):
            draw.text((x, y + cell + 1 + line * line_height), _fitted(text, font, cell), fill="black", font=font)
    return np.asarray(sheet)


def _pictures(images: Images) -> "list[Image.Image]":
    from PIL import Image

    pictures = []
    for image in images:
        if isinstance(image, Path):
            with Image.open(image) as opened:
                pictures.append(opened.convert("RGB"))
            continue
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image of shape {image.shape} and type {image.dtype}: expected uint8 RGB")
        pictures.append(Image.fromarray(np.ascontiguousarray(image)))
    return pictures


def _fitted(text: str, font: "ImageFont.FreeTypeFont", width: int) -> str:
    """As much of the text as fits in `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def draw_confusion(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix: a row for each label, a column for each prediction, and counts in the cells.

    Only off-diagonal counts have colours. Otherwise the correct predictions would hide the rest.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix, names = np.array(counts), [_short(name) for name in class_names]
    wrong = np.where(np.eye(len(names), dtype=bool), 0, matrix)
    with rc_context({"text.parse_math": False}):  # do not read a dollar sign in a name as math
        side = 0.42 * len(names)
        figure = Figure(figsize=(3.2 + side, 2.6 + side), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        ax = figure.subplots()
        ax.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(1, wrong.max()))
        for y, x in np.ndindex(*matrix.shape):
            if matrix[y, x]:
                dark = wrong[y, x] > 0.6 * wrong.max()
                colour = "white" if dark else "black"
                ax.text(x, y, str(matrix[y, x]), ha="center", va="center", fontsize=8, color=colour)
        ax.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_xlabel("prediction")
        ax.set_ylabel("label")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
