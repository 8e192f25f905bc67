"""Small generated versions of the official ILSVRC archives, Kaggle's layout and Tiny-ImageNet."""

import base64
from pathlib import Path

import pytest

from penstock.shard_tools.sources import SOURCES, SourceKind, ilsvrc
from penstock.shard_tools.sources.ilsvrc import Ilsvrc
from tests.common.source_images import WNIDS, Labelled, jpeg, write_tar

# Written by scipy.io.savemat: a struct array `synsets` with the devkit's fields. Devkit ids 1…4 are DEVKIT_WNIDS, which
# are not in the order of the sorted wnids; ids 5 and 6 are synsets above them (num_children 2).
META = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFR1ZSBOb3YgMjQgMDA6MzI6MDcgMjAyNgAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAywEAAHic7VbRTsIwFC1GER40aHzgsR+wh3UMN54k0QdMjDFq"
    "8BHrrKwROrKWKH/gB/ihfoItK1rqlMgSeOEmd925zTnNvTnptg8A6OwBUJZrReYWyGJHY1Uv6dyVySeME8Hl/jY40PU3mecXN93rU89FXu/8TAnc"
    "XWbrV7wk6SM3C/1BwucKbDzsRTEdPKaETQtzYKbBiOjFhPZjoSkixZT16BD3CQf7shiC737KVj8lI1VUdT2LjxPFbxv87Rx+1eDXNGauh1ArCFu6"
    "rnQ6C3Tqlo7Cz1TAp+TVgd3xYEQ4HOIoTQTldl95eruWnsIYZmMuNpesH/cP/ixM/oxX9Nyl+Vfv7YLnt5f2A2q6QRP5yOjjfoGOY+koLBI6IAJK"
    "B/AxcaCGIzwiqQMfsIjTJBnq7bx5bXyyCp9UlveJi3zfDY59o49F98ahpaOwICyKHXhLWYSlHeQzfy4bP6zCD7UCfmiEYeg1A6OPRTo1S0flCKc4"
    "isdC3hnTZeODdfjgqIAPZKDAd3/pI0+nbOkoTJigYrL2e+DHHPL4Wxa/9kX/ODF1it7Ta/MTqBfyg4dajf/8X+Z9J3Aq6BOOhAPlG1Fv+X1t/LGc"
    "Pz4BR8SSTQ=="
)
DEVKIT_WNIDS = ("n02119789", "n15075141", "n01440764", "n03888257")
TRUTH = [3, 1, 4, 4, 2, 1, 2, 3]


def devkit(root: Path, truth: list[int] = TRUTH, meta: bytes = META) -> None:
    lines = "".join(f"{i}\n" for i in truth).encode()
    data = "ILSVRC2012_devkit_t12/data/"
    members = [(data + "meta.mat", meta), (data + "ILSVRC2012_validation_ground_truth.txt", lines)]
    write_tar(root / ilsvrc.DEVKIT, members, "w:gz")


def train_tar(root: Path, wnids: tuple[str, ...] = WNIDS) -> Labelled:
    images = [(wnid, [(f"{wnid}_{j}.JPEG", jpeg(10 * i + j)) for j in range(3)]) for i, wnid in enumerate(wnids)]
    inner = [(f"{wnid}.tar", write_tar(root / "inner", members).read_bytes()) for wnid, members in images]
    (root / "inner").unlink()
    write_tar(root / ilsvrc.TRAIN, inner)
    return {data: ("train", wnid) for wnid, members in images for _, data in members}


def val_tar(root: Path, numbers: list[int] | None = None) -> Labelled:
    """Make the validation tar. Its members are not in the order of their numbers."""
    numbers = numbers or [5, 1, 2, 8, 3, 4, 6, 7]
    write_tar(root / ilsvrc.VAL, [(f"ILSVRC2012_val_{i:08d}.JPEG", jpeg(100 + i)) for i in numbers])
    return {jpeg(100 + i): ("val", DEVKIT_WNIDS[TRUTH[i - 1] - 1]) for i in numbers if i <= len(TRUTH)}


def small_archives(root: Path, monkeypatch: pytest.MonkeyPatch) -> Labelled:
    """Small archives, and a registry entry with their numbers: 4 classes, 2 validation images each."""
    root.mkdir()
    kind = SourceKind(ilsvrc.recognise, lambda path, options: Ilsvrc(path, 4, 2), ilsvrc.LAYOUT)
    monkeypatch.setitem(SOURCES, "ilsvrc", kind)
    devkit(root)
    return train_tar(root) | val_tar(root)


MAPPING = "".join(
    f"{wnid} {name}, another name\n" for wnid, name in zip(WNIDS, ["tench", "fox", "chute", "tissue"], strict=True)
)


def kaggle_files() -> tuple[dict[str, bytes], Labelled]:
    """Path → content of Kaggle's layout."""
    files = {"LOC_synset_mapping.txt": MAPPING.encode()}
    expected: Labelled = {}
    for i in range(8):
        data, wnid = jpeg(i), WNIDS[i % 4]
        files[f"ILSVRC/Data/CLS-LOC/train/{wnid}/{wnid}_{i}.JPEG"] = data
        expected[data] = "train", wnid
    lines = ["ImageId,PredictionString"]
    for i in range(4):
        data, wnid = jpeg(50 + i), WNIDS[3 - i]
        files[f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{i + 1:08d}.JPEG"] = data
        expected[data] = "val", wnid
        lines.insert(1, f"ILSVRC2012_val_{i + 1:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8 ")
    files["LOC_val_solution.csv"] = "\n".join([*lines, ""]).encode()
    files["ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG"] = jpeg(99)
    files["ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml"] = b"<annotation/>"
    return files, expected


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tiny(root: Path) -> Labelled:
    """Tiny-ImageNet with 4 classes."""
    files = {
        "words.txt": b"n00001740\tentity\nn02119789\tkit fox, Vulpes macrotis\nn01440764\ttench\n",
        "wnids.txt": b"",
    }
    expected: Labelled = {}
    lines = []
    for i in range(8):
        wnid = WNIDS[i % 4]
        files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(i)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        expected[jpeg(i)] = "train", wnid
    for i in range(4):
        files[f"val/images/val_{i}.JPEG"] = jpeg(20 + i)
        lines.append(f"val_{i}.JPEG\t{WNIDS[3 - i]}\t0\t0\t63\t63\n")
        expected[jpeg(20 + i)] = "val", WNIDS[3 - i]
    files["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    files["test/images/test_0.JPEG"] = jpeg(40)
    write_files(root, files)
    return expected
