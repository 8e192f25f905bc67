"""Packing beside what bounds it and what else does it, in turn in one run, medians and spread.

    python benchmarks/studies/pack.py --source DIR [--images 5000] [--repeats 3] [--json FILE]

The images below DIR are copied into a tree of ten classes, over and over until there are `--images`, so that every
program reads the same warm files and start-up counts little. All have the same number of processes, started before.

decode    pack --check decode | simplejpeg decoding the same files at full size and doing nothing else
header    pack --check header | `tar cf` | `cp -r` of the same tree (neither syncs its output to the disk, pack does)
resize    pack --short-side 256 --quality 90 | webdataset's ShardWriter with Pillow (DCT scaling where it helps,
          BICUBIC), one writer a process | FFCV's DatasetWriter (JPEGs of quality 90, about as many pixels), if it
          is installed
open      ShardSet.open, and DaliLoader's first batch, of a table of 1,281,167 rows and of the packed images' own, in
          fresh processes that have imported torch and DALI
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import simplejpeg
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from shard_tools.encode import EncodeConfig
from shard_tools.format import ShardInfo, ShardSet, write_info, write_split
from shard_tools.jpeg import read_header
from shard_tools.workers import num_cpus, process_pool
from shard_tools.writer import pack

IMAGENET_ROWS = 1_281_167
SHORT_SIDE, QUALITY = 256, 90
NUM_CLASSES = 10
FIRST_BATCH = """
import sys, time, json, torch
from nvidia.dali import fn, types
sys.path.insert(0, sys.argv[1])
from pipeline.augment import AugmentConfig; from pipeline.config import DataConfig
from pipeline.feed import Feed; from pipeline.loader import DaliLoader; from shard_tools.format import ShardSet
begin = time.perf_counter()
split = ShardSet.open(sys.argv[2]).split("train")
opened = time.perf_counter()
feed = Feed(split=split, config=DataConfig(), augment=AugmentConfig(), batch_size=100, global_batch_size=100)
loader = DaliLoader(feed, device=torch.device("cpu"), threads=int(sys.argv[3]))
next(iter(loader.iter_epoch(0)))
print(json.dumps({"open_s": opened - begin, "first_batch_s": time.perf_counter() - opened}))
os = __import__("os"); sys.stdout.flush(); os._exit(0)
"""


def make_tree(source: Path, root: Path, num_images: int) -> list[Path]:
    """Copies of the images below `source` as ROOT/train/CLASS/NUMBER.jpg."""
    found = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()]
    found = [path for path in found if (header := read_header(path.read_bytes())) and header.components < 4]
    if not found:
        raise click.ClickException(f"{source}: has no JPEG images; give a directory of them")
    paths = []
    for i in range(num_images):
        paths.append(root / "train" / f"class{i % NUM_CLASSES}" / f"{i:07d}.jpg")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found[i % len(found)], paths[-1])
    return paths


def packed(tree: Path, out: Path, pool: Executor, workers: int, count: int, config: EncodeConfig) -> int:
    """Our own: bytes written."""
    done = pack(tree, out, encode=config, samples_per_shard=per_shard(count, workers), workers=workers, executor=pool)
    return sum(shard.bytes for shard in done.shard_set.split("train").shards)


def per_shard(count: int, workers: int) -> int:
    return max(1, -(-count // (8 * workers)))


def chunked(paths: list[Path], workers: int) -> list[list[Path]]:
    size = per_shard(len(paths), workers)
    return [paths[i : i + size] for i in range(0, len(paths), size)]


def decode_all(paths: list[Path]) -> int:
    for path in paths:
        simplejpeg.decode_jpeg(path.read_bytes())
    return 0


def bare_decode(paths: list[Path], pool: Executor, workers: int) -> int:
    return sum(pool.map(decode_all, chunked(paths, workers)))


def command(*arguments: object, out: Path) -> int:
    subprocess.run(list(map(str, arguments)), check=True)
    return sum(path.stat().st_size for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file())


def write_webdataset(paths: list[Path], pattern: str) -> int:
    """One shard of webdataset's, resized by Pillow."""
    import webdataset

    with webdataset.ShardWriter(pattern, maxcount=len(paths) + 1, maxsize=1 << 40, verbose=0) as writer:
        for path in paths:
            with Image.open(path) as image:
                scale = SHORT_SIDE / min(image.size)
                if scale < 1:
                    size = (round(image.width * scale), round(image.height * scale))
                    image.draft(None, size)
                    buffer = io.BytesIO()
                    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=QUALITY)
                    jpeg = buffer.getvalue()
                else:
                    jpeg = path.read_bytes()
            label = int(path.parent.name.removeprefix("class"))
            writer.write({"__key__": path.stem, "cls": label, "jpg": jpeg})
        size_bytes = int(writer.size)
    return size_bytes


def webdataset_pillow(paths: list[Path], out: Path, pool: Executor, workers: int) -> int:
    out.mkdir()
    chunks = chunked(paths, workers)
    return sum(pool.map(write_webdataset, chunks, [f"{out}/{i:04d}-%06d.tar" for i in range(len(chunks))]))


class Pictures:
    """What FFCV's writer reads: (PIL image, label)."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.open(self.paths[i]).convert("RGB"), int(self.paths[i].parent.name.removeprefix("class"))


def ffcv(paths: list[Path], out: Path, workers: int) -> int:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    shapes = [Image.open(path).size for path in paths[:500]]
    longest = round(SHORT_SIDE * statistics.mean(max(shape) / min(shape) for shape in shapes))
    image = RGBImageField(write_mode="jpg", max_resolution=longest, jpeg_quality=QUALITY)
    DatasetWriter(str(out), {"image": image, "label": IntField()}, num_workers=workers).from_indexed_dataset(
        Pictures(paths), chunksize=100
    )
    return out.stat().st_size


def has_ffcv() -> bool:
    try:
        import ffcv  # noqa: F401
    except ImportError as error:
        click.echo(f"ffcv: left out ({error})")
        return False
    return True


def enlarged(root: Path, out: Path, rows: int) -> None:
    """The dataset at `root` with its training table's rows repeated to `rows`; its shards are links."""
    split = ShardSet.open(root).split("train")
    table = np.tile(split.samples, -(-rows // len(split)))[:rows]
    table = table[np.argsort(table["shard"], kind="stable")]
    counts = np.bincount(table["shard"], minlength=len(split.shards))
    out.mkdir()
    for shard in range(len(split.shards)):
        os.link(split.shard_path(shard), out / split.shards[shard].file)
    infos = [
        ShardInfo(info.file, int(n), info.bytes, info.sha256) for info, n in zip(split.shards, counts, strict=True)
    ]
    files = write_split(out, "train", table, (f"{i}.jpg" for i in range(rows)))
    write_info(out, ShardSet.open(root).classes, {"train": infos}, {}, files)


def first_batch(root: Path, threads: int) -> dict[str, float]:
    arguments = [sys.executable, "-c", FIRST_BATCH, str(Path(__file__).parents[2]), str(root), str(threads)]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def programs(
    tree: Path, paths: list[Path], pool: Executor, workers: int, out: Path
) -> Iterator[tuple[str, str, Callable[[], int]]]:
    """(group, name, what to time); the first of a group is ours."""
    ours = partial(packed, tree, out, pool, workers, len(paths))
    yield "decode", "pack --check decode", partial(ours, EncodeConfig())
    yield "decode", "simplejpeg alone", partial(bare_decode, paths, pool, workers)
    yield "header", "pack --check header", partial(ours, EncodeConfig(check="header"))
    yield "header", "tar cf", partial(command, "tar", "cf", out, "-C", tree, ".", out=out)
    yield "header", "cp -r", partial(command, "cp", "-r", tree, out, out=out)
    yield "resize", "pack --short-side 256", partial(ours, EncodeConfig(short_side=SHORT_SIDE, quality=QUALITY))
    yield "resize", "webdataset + Pillow", partial(webdataset_pillow, paths, out, pool, workers)
    if has_ffcv():
        yield "resize", "ffcv", partial(ffcv, paths, out, workers)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def settle(_: int) -> None:
    """Start one worker: what it imports and compiles at its first image, it has afterwards."""
    import webdataset  # noqa: F401

    from shard_tools.resize import resize

    for channels in (1, 4):
        resize(np.zeros((9, 9, channels), np.uint8), 4, 4)
    time.sleep(0.5)  # so that each of the workers gets one of these


@click.command(context_settings={"show_default": True})
@click.option("--source", required=True, type=click.Path(path_type=Path, exists=True), help="Any directory of JPEGs.")
@click.option("--images", default=5000, type=click.IntRange(min=100), help="Copied from it, in turn.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one for each CPU core]")
@click.option("--repeats", default=3, type=click.IntRange(min=1))
@click.option("--rows", default=IMAGENET_ROWS, help="Of the table that is opened.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="For copies and outputs; a disk's.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    source: Path, images: int, workers: int | None, repeats: int, rows: int, work: Path | None, json_file: Path | None
) -> None:
    """Measure, print a table, write JSON."""
    workers = workers or num_cpus()
    times: dict[tuple[str, str], list[float]] = {}
    sizes: dict[str, int] = {}
    opened: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="pack-", dir=work) as folder, process_pool(workers) as pool:
        tree, out, large = Path(folder, "tree"), Path(folder, "out"), Path(folder, "large")
        paths = make_tree(source, tree, images)
        source_bytes = sum(path.stat().st_size for path in paths)
        list(pool.map(settle, range(2 * workers)))
        known = list(programs(tree, paths, pool, workers, out))
        decode_all(paths)  # reads every file once: the page cache is warm
        for _ in range(repeats):
            for group, name, program in known:
                os.sync()  # what the last program wrote is not this one's
                begin = time.perf_counter()
                sizes[name] = program()
                times.setdefault((group, name), []).append(time.perf_counter() - begin)
                remove(out)
        packed(tree, out, pool, workers, images, EncodeConfig(check="header"))
        enlarged(out, large, rows)
        for _ in range(repeats):
            for name, root in ((f"{rows} rows", large), (f"{images} rows", out)):
                opened.setdefault(name, []).append(first_batch(root, workers))
    result: dict[str, Any] = {}
    first: dict[str, list[float]] = {}
    for (group, name), seconds in times.items():
        ours = first.setdefault(group, seconds)
        ratios = [theirs / mine for mine, theirs in zip(ours, seconds, strict=True)]
        rate = images / statistics.median(seconds)
        result[name] = {"group": group, "seconds": seconds, "images_per_s": rate, "bytes": sizes[name], "ratio": ratios}
        click.echo(
            f"{group:8}{name:24}{rate:9,.0f} images/s [{images / max(seconds):,.0f}–{images / min(seconds):,.0f}] "
            f"{sizes[name] / 1e6:8,.1f} MB   pack is {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}–{max(ratios):.2f}] times it"
        )
    for name, measured in opened.items():
        result[name] = {key: [each[key] for each in measured] for key in ("open_s", "first_batch_s")}
        for key, values in result[name].items():
            row = f"{key} of {name}"
            click.echo(f"open    {row:32}{statistics.median(values):7.3f} s [{min(values):.3f}–{max(values):.3f}]")
    if json_file:
        from training import environment

        settings = {
            "images": images,
            "source_bytes": source_bytes,
            "workers": workers,
            "repeats": repeats,
            "rows": rows,
        }
        about = environment.describe()
        json_file.write_text(
            json.dumps({"settings": settings, "results": result, "environment": about}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
