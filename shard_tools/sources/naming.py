"""What names say: a split, an image, or no data at all; and the class keys of labels that are numbers."""

import re

from penstock.shard_tools.sources.imagenet import wnids_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm")
MAX_IGNORED = 1000
MAX_CLASSES = 1_000_000  # the keys of numbers have six digits
SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "evaluation": "val",
    "test": "test", "tests": "test", "testing": "test", "tst": "test",
}  # fmt: skip
FILLERS = (
    "set", "sets", "split", "data", "dataset", "dir", "folder", "file", "files", "sample", "samples", "image", "images",
    "img", "imgs", "picture", "pictures", "photo", "photos", "jpg", "jpeg", "png", "x", "px",
)  # fmt: skip
NAMELESS = {*FILLERS, "all", "unknown", "unlabeled", "unlabelled"}  # directories of images that are no class
JOINED = re.compile(f"({'|'.join(SPLIT_WORDS)})({'|'.join(FILLERS)})")  # trainset, testdata
JUNK = {
    "@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found",
}  # fmt: skip


class Ignored(list[str]):
    """Names that a source left out; it remembers the first `MAX_IGNORED`."""

    def append(self, name: str) -> None:
        if len(self) < MAX_IGNORED:
            super().append(name)


def split_of(path: str) -> str:
    """The split that a container's path tells: by its last word out of `SPLIT_WORDS`, words being runs of letters.

    So `imagenet1k-validation-07.tar` and `val/07.tar` are of val. A path without such a word is of train.
    """
    words = [split for word in re.findall(r"[a-z]+", path.lower()) if (split := _split_word(word))]
    return words[-1] if words else "train"


def split_in(name: str) -> tuple[str, tuple[str, ...]]:
    """The split that a directory's name tells, and the words of the name that have nothing to do with it.

    ("train", ()) for Training_Set or train2017, ("train", ("seg",)) for seg_train, ("", ("cat",)) for cat. A name that
    tells two splits tells none.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = [split for word in words if (split := _split_word(word))]
    rest = tuple(word for word in words if not _split_word(word) and word not in FILLERS)
    return (splits[0], rest) if len(splits) == 1 else ("", tuple(words))


def is_nameless(name: str) -> bool:
    """Whether a directory's name is no class's: images, data1, 0; or a split's."""
    split, words = split_in(name)
    return bool(split and not words) or set(words) <= NAMELESS


def _split_word(word: str) -> str:
    joined = JOINED.fullmatch(word)
    return SPLIT_WORDS.get(joined[1] if joined else word, "")


def split_rank(split: str) -> tuple[int, str]:
    """Sorts splits: train, val, test."""
    order = list(dict.fromkeys(SPLIT_WORDS.values()))
    return order.index(split) if split in order else len(order), split


def is_image(name: str) -> bool:
    """Whether a name, or a path with "/", is that of an image file, which nothing that `is_junk` holds."""
    if not name.lower().endswith(EXTENSIONS):
        return False
    return not any(is_junk(part) for part in name.split("/") if part not in (".", ".."))


def is_junk(name: str) -> bool:
    """Whether a file or directory is none of the data: hidden, or a system's own (thumbnails, resource forks, bins)."""
    return name.startswith(".") or name.lower() in JUNK


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8; JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def numbered_key(label: int) -> str:
    """The class key of label `label` where there is no better one; sorted keys are in the order of the numbers."""
    return f"{label:06d}"


def numbered_keys(count: int) -> list[str]:
    """The class keys of labels 0 … count − 1."""
    return [numbered_key(label) for label in range(count)]


def check_number(label: int, where: str) -> None:
    """Raises ValueError for a label that would make more classes than any network has: an id, not a place."""
    if label >= MAX_CLASSES:
        raise ValueError(
            f"{where}: label {str(label)[:20]} would make more than {MAX_CLASSES:,} classes: number them from 0, or "
            "give their names as labels"
        )


def numbered_classes(names: list[str]) -> dict[str, str]:
    """Class key → readable name of labels 0, 1, …: wnids if these are ImageNet-1k's names, else `numbered_key`s.

    Either way the sorted keys keep the numbers that the source gave its labels, which names would not.
    """
    return dict(zip(wnids_of(names) or numbered_keys(len(names)), names, strict=True))


def few_of(names: list[str]) -> str:
    """A few of them, for a message."""
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
