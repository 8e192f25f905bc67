"""What the samples themselves say their classes are called: fields of the JSON beside the images, and wnids in names.

A field counts only where it says the same for every sample of a class, over the whole set.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shard_tools.sources.naming import EXTENSIONS, is_text

NAMES = (  # the surer first
    "class_name", "classname", "label_name", "label_text", "category_name", "class", "category", "wnid", "synset",
    "synset_id", "wordnet_id", "label", "name",
)  # fmt: skip
FILES = ("filename", "file_name", "file", "path", "file_path", "image_path", "image")
MEMBER = "the images' names in the tars"
WNID = re.compile(r"(?<![0-9A-Za-z])n[0-9]{8}(?![0-9A-Za-z])")
MAX_NAME = 200  # characters; a longer text is a caption
DISTINCT = 0.9  # share of a field's names: ImageNet has two cranes; a field with fewer tells groups of classes
Label = int | str


@dataclass
class NamesMet:
    """Field → label → what it says, and the fields that contradict themselves with an example. Grows with classes."""

    said: dict[str, dict[Label, str]] = field(default_factory=dict)
    differing: dict[str, tuple[Label, str, str]] = field(default_factory=dict)

    def add(self, label: Label, about: dict[str, object], member: str) -> None:
        """One sample: its label, the object of its .json, the name of its image in the tar."""
        about = {key.lower(): value for key, value in about.items()}
        for key in NAMES:
            if (name := _name(about.get(key))) and name != label:
                self._add(key, label, name)
        for key, text in [*((key, about.get(key)) for key in FILES), (MEMBER, member)]:
            if isinstance(text, str) and (found := WNID.findall(text)) and found[-1] != label:
                self._add(key, label, found[-1])

    def join(self, other: "NamesMet") -> None:
        """Add what another has met: afterwards this is as if it had met both's samples."""
        self.differing = other.differing | self.differing
        for key, names in other.said.items():
            for label, name in names.items():
                self._add(key, label, name)

    def _add(self, key: str, label: Label, name: str) -> None:
        known = self.said.setdefault(key, {}).setdefault(label, name)
        if known != name:
            self.differing.setdefault(key, (label, known, name))

    def names(self) -> dict[Label, str]:
        """Label → readable name, of those that have one. Names come before wnids, whose names ImageNet's list has."""
        plain: dict[Label, str] = {}
        wnids: dict[Label, str] = {}
        for key in self._agreeing():
            for label, name in self.said[key].items():
                (wnids if WNID.fullmatch(name) else plain).setdefault(label, name)
        known = imagenet_classes()
        return {label: known.get(wnid, wnid) for label, wnid in wnids.items()} | plain

    def notes(self) -> Iterator[str]:
        """Lines for people: which names are taken, and which are not."""
        used = self._agreeing()
        if used:
            yield f"classes are called as the samples say: {', '.join(map(_quoted, used))}"
        for key in NAMES:
            if key in self.differing:
                label, a, b = self.differing[key]
                yield f"no class names from {_quoted(key)}: class {label} has {a!r} and {b!r} there"
            elif key in self.said and key not in used:
                names = self.said[key].values()
                yield f"no class names from {_quoted(key)}: {len(names)} classes have {len(set(names))} names there"

    def _agreeing(self) -> list[str]:
        """The fields that say one thing of each class, and that tell the classes apart."""
        order = [key for key in (*NAMES, *FILES, MEMBER) if key in self.said and key not in self.differing]
        return [key for key in order if _tells_apart(list(self.said[key].values()))]


def _tells_apart(names: list[str]) -> bool:
    share = 1.0 if any(map(WNID.fullmatch, names)) else DISTINCT
    return len(set(names)) >= share * len(names)


def _name(value: object) -> str:
    """A class's name or wnid; "" for what can be none: numbers, names of image files, captions."""
    if not isinstance(value, str) or len(value) > MAX_NAME or not is_text(value) or value.lower().endswith(EXTENSIONS):
        return ""
    name = " ".join(value.split())
    return "" if re.fullmatch(r"[+-]?[0-9.]+", name) else name


def _quoted(key: str) -> str:
    return key if key == MEMBER else f'"{key}" of the .json members'
