"""The names and the number of the classes: from the source, from ImageNet's list, or from the user's class file."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.shard_tools.sources.imagenet import imagenet_names
from penstock.shard_tools.sources.naming import check_number, few_of, is_text, numbered_keys
from penstock.shards.format import ClassInfo


def class_infos(
    keys: Sequence[str], source_names: dict[str, str], given: dict[str, str], numbered: bool = False
) -> list[ClassInfo]:
    """One `ClassInfo` per class key, in order. The name comes from `given`, from the source, or from ImageNet's list;
    otherwise it is the key. numbered: the source's labels are numbers, so class 000007 is called "7" by default."""
    plain = {key: plain_key(key) for key in keys if numbered and re.fullmatch("[0-9]{6}", key)}
    names = plain | imagenet_names(keys) | source_names | given
    return [ClassInfo(key, names.get(key) or key) for key in keys]


def read_class_file(path: Path, keys: Sequence[str]) -> dict[str, str]:
    """Read class key → readable name from a file with lines of `KEY NAME`, or with JSON `{"KEY": "NAME"}`.

    Blank lines and lines that begin with # are skipped. Numeric keys may have leading zeros. The file may name further
    classes. If the classes are numbers and the lines are not `NUMBER NAME`, line i (from 0) names class i (`NAME` or
    `WNID NAME`); so does item i of a JSON list.

    Raises:
        ValueError: the file cannot be read, or names none of the classes.
    """
    names = _entries(path, keys)
    plain = {plain_key(key): name for key, name in names.items()}
    found = {key: names.get(key, plain.get(plain_key(key))) for key in keys}
    known = {key: name.strip() for key, name in found.items() if name and name.strip()}
    if not known:
        raise ValueError(f"{path}: names none of the classes {', '.join(keys[:3])} …; write lines like: {keys[0]} NAME")
    return known


def keys_with_file(keys: list[str], path: Path | None) -> list[str]:
    """The class keys by label, plus those that a class file adds if the classes are the numbers 0, 1, …: 1,000 names
    make 1,000 classes even if the largest label is 987. Raises what `read_class_file` raises."""
    if path is None or keys != numbered_keys(len(keys)):
        return keys
    numbers = [int(key) for key in _entries(path, keys) if re.fullmatch("[0-9]{1,4000}", key)]
    for number in numbers:
        check_number(number, str(path))
    return numbered_keys(max(len(keys), *(number + 1 for number in numbers))) if numbers else keys


def gap_lines(keys: Sequence[str], num_images: Mapping[str, NDArray[np.int64]]) -> Iterator[str]:
    """Messages about classes without images. num_images: split → (num_classes,), the training split first."""
    splits = list(num_images)
    empty = np.flatnonzero(np.sum(list(num_images.values()), axis=0) == 0)
    if len(empty):
        yield f"{len(empty):,} of {len(keys):,} classes have no images but keep their labels: {_few_of(keys, empty)}"
    for split in splits[1:]:
        new = np.flatnonzero((num_images[split] > 0) & (num_images[splits[0]] == 0))
        if len(new):
            yield f"{len(new):,} class(es) have images in {split} but none in {splits[0]}: {_few_of(keys, new)}"


def met_lines(keys: Sequence[str], lost: set[str]) -> Iterator[str]:
    """Messages about surprising labels if the classes are the sorted keys of the images. lost: the keys of unusable
    images."""
    if missing := sorted(lost.difference(keys)):
        yield f"no image of class {few_of(missing)} can be used; the dataset has the other {len(keys):,} classes"
    if all(key.isascii() and key.isdecimal() for key in keys):
        moved = [f"the label of {key!r} is {label}" for label, key in enumerate(keys) if int(key) != label]
        if moved:
            yield (
                f"the class names are numbers, but labels follow their order as text (as in torchvision): {moved[0]}"
            )


def stranger(split: str, keys: set[str], first: str, known: set[str]) -> str:
    """The error if split `split` has class keys that split `first` lacks. known: the keys of `first`."""
    extra = sorted(keys - known)
    written = {_alike(key): key for key in known}
    for key in extra:
        if other := written.get(_alike(key)):
            return f"class {key!a} of {split} is spelled {other!a} in {first}; rename one of them"
    return f"class {few_of(extra)} of {split} is not in {first}; add it there or remove it from {split}"


def _alike(key: str) -> str:
    """Normalise a key: keys become equal if they differ only in case, spaces, leading zeros or Unicode form."""
    return plain_key(" ".join(unicodedata.normalize("NFKC", key).casefold().split()))


def _few_of(keys: Sequence[str], labels: NDArray[np.int64]) -> str:
    return few_of([keys[label] for label in labels.tolist()])


def plain_key(key: str) -> str:
    """A number without its leading zeros; any other key as it is."""
    return (key.lstrip("0") or "0") if key.isascii() and key.isdecimal() else key


def _are_numbers(keys: Sequence[str]) -> bool:
    return all(re.fullmatch("[0-9]{6}", key) for key in keys)


def _entries(path: Path, keys: Sequence[str]) -> dict[str, str]:
    """The entries of the file: key, as written there → name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if text.lstrip().startswith("{") or (text.lstrip().startswith("[") and _are_numbers(keys)):
        try:
            return _json_entries(json.loads(text), path)
        except (ValueError, RecursionError) as error:
            if str(error).startswith(str(path)):
                raise
            raise ValueError(f"{path}: not a JSON object ({error})") from None
    text = re.sub(r"^([0-9]+)[,;:](?=\D)", r"\1 ", text, flags=re.MULTILINE)  # "7,cat" or "7: cat", as in tables
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not _are_numbers(keys):
        return dict(_key_and_name(" ".join(words), set(keys)) for words in lines)
    if not _are_keyed(lines, len(keys)):
        wnids = all(len(words) == 2 and re.fullmatch("n[0-9]{8}", words[0]) for words in lines)
        names = [words[1].strip() if wnids else " ".join(words).strip() for words in lines]
        if len(names) <= max(map(int, keys)):
            last = plain_key(max(keys))
            raise ValueError(
                f"{path}: its {len(names)} lines have no numbers and are too few to name the classes 0 … {last} in "
                f"order; write lines like: {last} NAME"
            )
        return dict(zip(map(str, range(len(names))), names, strict=True))
    return {words[0]: words[-1] for words in lines}


def _are_keyed(lines: list[list[str]], num_classes: int) -> bool:
    """Whether lines are `NUMBER NAME`, perhaps with a header, rather than names in the order of the labels.

    Names may begin with a number, too: "1 star", "2 stars" for labels 0 and 1; "2 euro", "1 euro", "3 euro";
    "911 Porsche", "2 CV"."""
    rows = [words for words in lines if words[0].isascii() and words[0].isdecimal()]
    numbers, names = [int(words[0]) for words in rows], {words[-1] for words in rows if len(words) > 1}
    if rows not in (lines, lines[1:]) or len(set(numbers)) < len(rows) or 2 * len(names) <= len(rows):
        return False
    from_one = numbers == list(range(1, num_classes + 1))
    jumbled = len(rows) == num_classes and numbers != sorted(numbers) and sorted(numbers) != list(range(num_classes))
    return not from_one and not jumbled


def _key_and_name(line: str, keys: set[str]) -> tuple[str, str]:
    """Split a line `KEY NAME`. A key may contain blanks; the longest existing key counts."""
    words = line.split()
    num = next((num for num in range(len(words), 1, -1) if " ".join(words[:num]) in keys), 1)
    return " ".join(words[:num]), " ".join(words[num:] or words[:num])


def _json_entries(found: dict[str, object] | list[object], path: Path) -> dict[str, str]:
    """Read names from a JSON object of names, or of lists that end in a name (`{"0": ["n01440764", "tench"]}`), or from
    a JSON list."""
    names: dict[str, str] = {}
    for key, value in enumerate(found) if isinstance(found, list) else found.items():
        name = value[-1] if isinstance(value, list) and value else value
        if not isinstance(name, str) or not is_text(name):
            raise ValueError(f'{path}: the name of class {key!r} is not text; write {{"n01440764": "tench"}}')
        names[str(key)] = name
    return names
