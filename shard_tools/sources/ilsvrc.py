"""Read the official ILSVRC 2012 archives in place: a directory with the training tar, the validation tar, the devkit.

The training tar contains one tar per class; an image's place is its offset in the outer file. The validation images are
numbered, and line i of the devkit's ground truth is the devkit id of image i. meta.mat in the same devkit maps that id
to a wnid. We use that file, not a table of our own, so that ids and ground truth always come from one source.
"""

import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from penstock.shard_tools.sources.base import Place, Source, SourceImage
from penstock.shard_tools.sources.imagenet import imagenet_classes, imagenet_names
from penstock.shard_tools.sources.matfile import Struct, read_structs
from penstock.shard_tools.sources.naming import Ignored, few_of, is_image, is_junk
from penstock.shard_tools.sources.tarmembers import iterate_tar

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
LAYOUT = f"a directory with {TRAIN}, {VAL} and {DEVKIT}, as they are"
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"


def recognise(path: Path) -> bool:
    return any((path / name).is_file() for name in (TRAIN, VAL))


@dataclass
class Ilsvrc(Source):
    """The `Source`. `num_classes` and `val_per_class` are checked; they are 1000 and 50 in the real archives."""

    root: Path
    num_classes: int = 1000
    val_per_class: int = 50
    format: str = "ilsvrc"
    explained: str = field(init=False)
    ignored: Ignored = field(default_factory=Ignored)

    def __post_init__(self) -> None:
        self._has_val = (self.root / VAL).is_file()
        for name, needed in ((TRAIN, True), (DEVKIT, self._has_val)):
            if needed and not (self.root / name).is_file():
                raise ValueError(f"{self.root}: has no {name}; put it there, beside the other archives")
        val = "the devkit's ids give the validation labels" if self._has_val else f"no {VAL}, so no val split"
        self.explained = f"the official ILSVRC 2012 archives, read in place; {val}"

    def images(self, work: Path) -> Iterator[SourceImage]:
        """train/WNID/FILE in the order of the tars, then val/FILE."""
        self.ignored = Ignored()
        for name in sorted(path.name for path in self.root.iterdir()):
            if name not in (TRAIN, VAL, DEVKIT) and not is_junk(name):
                self.ignored.append(name)
        yield from self._train(set(self._devkit[0].values() if self._has_val else imagenet_classes()))
        if self._has_val:
            yield from self._val()

    def class_names(self) -> dict[str, str]:
        return imagenet_names(self._devkit[0].values() if self._has_val else imagenet_classes())

    def _train(self, wnids: set[str]) -> Iterator[SourceImage]:
        path = self.root / TRAIN
        seen: set[str] = set()
        for outer in iterate_tar(path):
            name = PurePosixPath(outer.name)
            if name.suffix != ".tar" or not outer.isreg() or any(map(is_junk, name.parts)):
                self.ignored.append(f"{TRAIN}/{outer.name}")
                continue
            wnid = name.stem
            if wnid not in wnids or wnid in seen:
                what = "occurs twice" if wnid in seen else "is not a class of ILSVRC 2012"
                raise ValueError(f"{path}: {outer.name} {what}; download the archive again")
            seen.add(wnid)
            empty = True
            for member in iterate_tar(path, outer.offset_data, outer.offset_data + outer.size):
                file = PurePosixPath(member.name).name
                if not is_image(member.name) or not member.isreg():
                    self.ignored.append(f"{TRAIN}/{outer.name}/{member.name}")
                    continue
                empty = False
                place = Place("stored", str(path), member.offset_data, member.size)
                yield SourceImage("train", wnid, f"train/{wnid}/{file}", member.size, place)
            if empty:
                raise ValueError(f"{path}: {outer.name} has no images; download the archive again")
        if len(seen) != self.num_classes:
            raise ValueError(f"{path}: has {len(seen)} classes, not {self.num_classes}; download the archive again")

    def _val(self) -> Iterator[SourceImage]:
        path = self.root / VAL
        wnid_of, truth = self._devkit
        seen = bytearray(len(truth))
        for member in iterate_tar(path):
            file = PurePosixPath(member.name).name
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", file)
            if match is None or not member.isreg() or not is_image(member.name):
                self.ignored.append(f"{VAL}/{member.name}")
                continue
            number = int(match[1])
            if not 1 <= number <= len(truth) or seen[number - 1]:
                what = "occurs twice" if 1 <= number <= len(truth) else f"is beyond the {len(truth)} lines of {TRUTH}"
                raise ValueError(f"{path}: {member.name} {what}; download the archive again")
            seen[number - 1] = 1
            place = Place("stored", str(path), member.offset_data, member.size)
            yield SourceImage("val", wnid_of[truth[number - 1]], f"val/{file}", member.size, place)
        if missing := seen.count(0):
            first = f"ILSVRC2012_val_{seen.index(0) + 1:08d}.JPEG"
            raise ValueError(
                f"{path}: has {len(seen) - missing} images, not {len(seen)} (first missing: {first}); download the "
                "archive again"
            )

    @cached_property
    def _devkit(self) -> tuple[dict[int, str], list[int]]:
        """Devkit id → wnid of each class, and the devkit id of each validation image, after checking both."""
        path = self.root / DEVKIT
        files: dict[str, bytes] = {}
        try:
            with tarfile.open(path, "r:*") as tar:
                for member in tar:
                    stream = tar.extractfile(member) if PurePosixPath(member.name).name in (META, TRUTH) else None
                    if stream is not None:
                        files[PurePosixPath(member.name).name] = stream.read()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(
                f"{path}: is damaged or not a tar ({str(error).splitlines()[0]}); download it again"
            ) from None
        for name in (META, TRUTH):
            if name not in files:
                raise ValueError(f"{path}: has no {name}; download the devkit for tasks 1 and 2 of ILSVRC 2012")
        try:
            synsets = read_structs(files[META], "synsets")
            wnid_of = {_number(s, "ILSVRC2012_ID"): str(s["WNID"]) for s in synsets if not _number(s, "num_children")}
            truth = [int(line) for line in files[TRUTH].split()]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path}: {META} or {TRUTH} cannot be read ({error}); download it again") from None
        self._check(path, wnid_of, truth)
        return wnid_of, truth

    def _check(self, path: Path, wnid_of: dict[int, str], truth: list[int]) -> None:
        if sorted(wnid_of) != list(range(1, self.num_classes + 1)) or len(set(wnid_of.values())) != self.num_classes:
            raise ValueError(
                f"{path}: the {len(wnid_of)} classes in {META} do not have the ids 1…{self.num_classes}; "
                "download it again"
            )
        if unknown := sorted(set(wnid_of.values()) - set(imagenet_classes())):
            raise ValueError(
                f"{path}: {META} has {few_of(unknown)}, not in ImageNet-1k; download the devkit of ILSVRC 2012"
            )
        expected = self.num_classes * self.val_per_class
        if len(truth) != expected:
            raise ValueError(f"{path}: {TRUTH} has {len(truth)} lines, not {expected}; download it again")
        if unknown_ids := sorted({str(i) for i in truth if i not in wnid_of}):
            raise ValueError(f"{path}: {TRUTH} has id {few_of(unknown_ids)}, not in {META}; download it again")
        for number, count in sorted(Counter(truth).items()):
            if count != self.val_per_class:
                raise ValueError(
                    f"{path}: {TRUTH} has class {number} ({wnid_of[number]}) {count} times, not {self.val_per_class}; "
                    "download it again"
                )


def _number(struct: Struct, field: str) -> int:
    value = struct[field]
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{field} is not a number")
    return int(value[0])
