"""Find class names in the samples themselves: in fields of the JSON beside the images, and as wnids in file names.

A field counts only if it has the same value for all samples of a class in the whole dataset.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shard_tools.sources.naming import EXTENSIONS, is_text

NAMES = (  # the most reliable first
    "class_name", "classname", "label_name", "label_text", "category_name", "class", "category", "wnid", "synset",
    "synset_id", "wordnet_id", "label", "name",
)  # fmt: skip
FILES = ("filename", "file_name", "file", "path", "file_path", "image_path", "image")
MEMBER = "the images' names in the tars"
WNID = re.compile(r"(?<![0-9A-Za-z])n[0-9]{8}(?![0-9A-Za-z])")
MAX_NAME = 200  # characters; a longer text is a caption
DISTINCT = 0.9  # minimum share of distinct names: ImageNet has two cranes; a field with fewer names describes groups
Label = int | str


@dataclass
class NamesMet:
    """Field → label → name, and the fields that contradict themselves, with an example. Grows with classes."""

    said: dict[str, dict[Label, str]] = field(default_factory=dict)
    differing: dict[str, tuple[Label, str, str]] = field(default_factory=dict)

    def add(self, label: Label, about: dict[str, object], member: str) -> None:
        """Add one sample: its label, the object of its .json, and the name of its image in the tar."""
        about = {key.lower(): value for key, value in about.items()}
        for key in NAMES:
            if (name := _name(about.get(key))) and name != label:
                self._add(key, label, name)
        for key, text in [*((key, about.get(key)) for key in FILES), (MEMBER, member)]:
            if isinstance(text, str) and (found := WNID.findall(text)) and found[-1] != label:
                self._add(key, label, found[-1])

    def join(self, other: "NamesMet") -> None:
        """Merge with another: the result is the same as if this had seen the samples of both."""
        self.differing = other.differing | self.differing
        for key, names in other.said.items():
            for label, name in names.items():
                self._add(key, label, name)

    def _add(self, key: str, label: Label, name: str) -> None:
        known = self.said.setdefault(key, {}).setdefault(label, name)
        if known != name:
            self.differing.setdefault(key, (label, known, name))

    def names(self) -> dict[Label, str]:
        """Label → readable name, for labels that have one. Names come before wnids; those become ImageNet's names."""
        plain: dict[Label, str] = {}
        wnids: dict[Label, str] = {}
        for key in self._agreeing():
            for label, name in self.said[key].items():
                (wnids if WNID.fullmatch(name) else plain).setdefault(label, name)
        known = imagenet_classes()
        return {label: known.get(wnid, wnid) for label, wnid in wnids.items()} | plain

    def notes(self) -> Iterator[str]:
        """Messages for the user about fields that are used for class names, and fields that are not."""
        used = self._agreeing()
        if used:
            yield f"class names come from the samples: {', '.join(map(_quoted, used))}"
        for key in NAMES:
            if key in self.differing:
                label, a, b = self.differing[key]
                yield f"{_quoted(key)} is not used for class names: class {label} has both {a!r} and {b!r}"
            elif key in self.said and key not in used:
                names = self.said[key].values()
                counts = f"{len(names)} classes have only {len(set(names))} names"
                yield f"{_quoted(key)} is not used for class names: {counts}"

    def _agreeing(self) -> list[str]:
        """The fields that have one value per class and distinguish the classes."""
        order = [key for key in (*NAMES, *FILES, MEMBER) if key in self.said and key not in self.differing]
        return [key for key in order if _tells_apart(list(self.said[key].values()))]


def _tells_apart(names: list[str]) -> bool:
    share = 1.0 if any(map(WNID.fullmatch, names)) else DISTINCT
    return len(set(names)) >= share * len(names)


def _name(value: object) -> str:
    """A class name or wnid; "" for values that cannot be one: numbers, names of image files, captions."""
    if not isinstance(value, str) or len(value) > MAX_NAME or not is_text(value) or value.lower().endswith(EXTENSIONS):
        return ""
    name = " ".join(value.split())
    return "" if re.fullmatch(r"[+-]?[0-9.]+", name) else name


def _quoted(key: str) -> str:
    return key if key == MEMBER else f'"{key}" of the .json members'
