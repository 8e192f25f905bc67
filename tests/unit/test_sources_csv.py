"""Realistic CSV tables: separators, encodings, headers, paths and labels of many kinds."""

import csv
import io
from pathlib import Path

import pytest

from penstock.shard_tools.sources import SourceOptions, open_source
from penstock.shard_tools.sources.base import SourceImage, Unusable

FILES = ("a/1.jpg", "a/2.jpg", "3.png")
ROWS = [["a/1.jpg", "cat"], ["a/2.jpg", "dog"], ["3.png", "cat"]]
Rows = list[tuple[str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def read(path: Path, **options: str) -> tuple[Rows, Rows]:
    """(name, class key) of the images, (name, reason) of the unusable ones."""
    found = list(open_source(path, options=SourceOptions(**options)).images(path.parent))
    images = [image for image in found if isinstance(image, SourceImage)]
    for image in images:
        assert Path(image.place.file).stat().st_size == image.size_bytes
    return [(i.name, i.key) for i in images], [(u.name, u.reason) for u in found if isinstance(u, Unusable)]


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def as_text(rows: list[list[str]], separator: str) -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator).writerows(rows)
    return stream.getvalue()


WHOLE = [("a/1.jpg", "cat"), ("a/2.jpg", "dog"), ("3.png", "cat")]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [None, ["path", "label"], ["ImageId", "Class"]])
def test_separators_are_found_out(folder: Path, name: str, separator: str, header: list[str] | None) -> None:
    path = table(folder, as_text(([header] if header else []) + ROWS, separator), name)
    assert read(path) == (WHOLE, [])
    assert ("without" in open_source(path).explained) == (header is None)


def test_separators_inside_cells(folder: Path) -> None:
    """Every row has one comma, but the semicolon is the separator: the existing files show it."""
    for name in ("x, y.jpg", "x.jpg, y.jpg"):
        (folder / name).write_bytes(b"1")
    assert read(table(folder, "x.jpg, y.jpg;cat\n")) == ([("x.jpg, y.jpg", "cat")], [])
    assert read(table(folder, "x, y.jpg;cat\nx, y.jpg;dog\n"))[0] == [("x, y.jpg", "cat"), ("x, y.jpg", "dog")]
    assert read(table(folder, '"x, y.jpg","a;b"\n"x, y.jpg","c;d"\n'))[0][0] == ("x, y.jpg", "a;b")
    assert read(table(folder, "sep=;\r\npath;label\r\nx, y.jpg;cat\r\n")) == ([("x, y.jpg", "cat")], [])
    short = read(table(folder, "path;label\n" + "3.png;cat\n" * 9 + "3.png\n"))
    assert (len(short[0]), short[1]) == (9, [("3.png", "line 11: has no label")])


def test_a_row_of_more_cells_than_the_first_is_an_error(folder: Path) -> None:
    """A class with a comma in its name, not quoted, must not become another class."""
    for text in ("path,label\n3.png,cat, tabby\n", "3.png,cat\na/1.jpg,cat, tabby\n"):
        with pytest.raises(
            ValueError, match=r"t.csv: line 2 has 3 cells, but the first row has 2: .*put quotes around"
        ):
            read(table(folder, text))
    assert read(table(folder, 'path,label\n3.png, "cat, tabby"\n'))[0] == [("3.png", "cat, tabby")]
    assert read(table(folder, "path,label\n3.png,cat,,\n"))[0] == [("3.png", "cat")]  # as spreadsheets leave them


def test_decimal_commas(folder: Path) -> None:
    assert read(table(folder, "path;label\n3.png;10,0\na/1.jpg;2,0\n"))[0] == [
        ("3.png", "000010"),
        ("a/1.jpg", "000002"),
    ]
    with pytest.raises(ValueError, match="'2,5' is a number, but not a whole one"):
        read(table(folder, "path;label\n3.png;2,5\n"))


def test_splits_are_told_as_those_of_trees(folder: Path) -> None:
    text = "path,label,split\n3.png,cat,train_set\na/1.jpg,cat,Validation Set\na/1.jpg,cat,test2017\n3.png,cat,fold_a\n"
    found = open_source(table(folder, text)).images(folder)
    assert [image.split for image in found] == ["train", "val", "test", "fold_a"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "latin-1"])
def test_encodings(folder: Path, encoding: str) -> None:
    (folder / "Käfer.jpg").write_bytes(b"1")
    path = table(folder, "path,label\r\nKäfer.jpg,Köter\r\n3.png,Maus\r\n".encode(encoding))
    assert read(path) == ([("Käfer.jpg", "Köter"), ("3.png", "Maus")], [])
    assert ("not UTF-8" in open_source(path).explained) == (encoding in ("cp1252", "latin-1"))


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf_16_of_both_orders(folder: Path, mark: bytes) -> None:
    text = "path\tlabel\n3.png\tcat\n".encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")
    assert read(table(folder, mark + text)) == ([("3.png", "cat")], [])
    with pytest.raises(ValueError, match=r"t.csv: not UTF-8 text .*save it as UTF-8"):
        read(table(folder, text))
    with pytest.raises(ValueError, match=r"t.csv: not valid utf-16"):
        read(table(folder, mark + text[:-1]))


def test_file_names_that_are_bytes(folder: Path) -> None:
    """Names in Latin-1 on the disk, in a table of the same bytes; a few such beside UTF-8 do not make it Latin-1."""
    raw = b"M\xe4use.jpg"
    Path(str(folder.joinpath("x"))[:-1].encode().decode() + raw.decode(errors="surrogateescape")).write_bytes(b"1")
    images, unusable = read(table(folder, b"path,label\n" + raw + b",cat\n"))
    assert (len(images), images[0][1], unusable) == (1, "cat", [])
    images, unusable = read(table(folder, b"path,label\n" + raw + b",cat\n3.png," + "Köter".encode() + b"\n"))
    assert (len(images), images[1], unusable) == (2, ("3.png", "Köter"), [])


@pytest.mark.parametrize(
    "header",
    ["ImageId,Class", "id,label", "image_id,target", "Filename,Category", "img,class_name", "image name,Label",
     "picture,LABELS", "file_name,y", "FilePaths,class id", "IMAGE-PATH,wnid"],
)  # fmt: skip
def test_usual_headers(folder: Path, header: str) -> None:
    path = table(folder, header + "\n" + as_text(ROWS, ","))
    assert read(path) == (WHOLE, [])


def test_columns_of_usual_names_in_any_place(folder: Path) -> None:
    text = "id,split,class id,labels,filepaths\n7,train,0,cat,3.png\n8,test,1,dog,a/1.jpg\n"
    found = list(open_source(table(folder, text)).images(folder))
    assert [(i.split, i.name, i.key) for i in found] == [("train", "3.png", "cat"), ("test", "a/1.jpg", "dog")]
    text = "label,weight,filename\ncat,1,3.png\n"
    assert read(table(folder, text)) == ([("3.png", "cat")], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photo of,breed\na/1.jpg,x\n", "'photo of' is not a file.*--image-column and --label-column from photo of, b"),
        ("filename,species\na/1.jpg,x\n", "no column for the label .* filename, species; .*--label-column"),
        ("diagnosis,image\nx,a/1.jpg\n", "no column for the label .*diagnosis, image"),
        ("species,label\nx,a/1.jpg\n", "no column for the image .*--image-column"),
    ],
)  # fmt: skip
def test_a_header_that_is_not_known_is_asked_about(folder: Path, text: str, message: str) -> None:
    path = table(folder, text)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    first = text.splitlines()[0].split(",")
    image = next(i for i, cell in enumerate(text.splitlines()[1].split(",")) if cell == "a/1.jpg")
    by_name = {"image_column": first[image], "label_column": first[1 - image]}
    by_number = {"image_column": str(image + 1), "label_column": str(2 - image)}
    assert len(read(path, **by_name)[0]) == len(read(path, **by_number)[0]) == 1


def test_a_first_row_that_is_data_stays_data(folder: Path) -> None:
    assert read(table(folder, "none.jpg,target\n3.png,class\n")) == (
        [("3.png", "class")],
        [("none.jpg", "line 1: no such file")],
    )
    numbers = {"image_column": "1", "label_column": "2"}
    assert read(table(folder, "none,target1\nnone2,class1\n"), **numbers)[1][0] == ("none", "line 1: no such file")


def test_paths_without_extension(folder: Path) -> None:
    assert read(table(folder, "ImageId,Class\n3,cat\na/1,dog\n"))[0] == [("3.png", "cat"), ("a/1.jpg", "dog")]
    (folder / "3.JPG").write_bytes(b"1")
    assert read(table(folder, "id,label\n3,cat\n"))[1] == [
        ("3", "line 2: no such file, but 3.JPG and 3.png exist; write the full path")
    ]


def test_files_in_one_folder(folder: Path) -> None:
    """Kaggle's way: `labels.csv` beside `train/`, and names or identifiers alone in the table."""
    (folder / "empty").mkdir()
    for text in ("id,label\n1,cat\n2,dog\nx,cat\n", "1.jpg,cat\n2.jpg,dog\nx.jpg,cat\n"):
        images, unusable = read(table(folder, text))
        assert images == [("a/1.jpg", "cat"), ("a/2.jpg", "dog")]
        assert [reason.partition(": ")[2] for _, reason in unusable] == ["no such file"]
        assert "the files are in a" in open_source(folder / "t.csv").explained
    (folder / "b").mkdir()
    (folder / "b" / "2.jpg").write_bytes(b"1")
    with pytest.raises(ValueError, match="'2' are not files beside it, but several folders have such files: a, b;"):
        read(table(folder, "id,label\n1,cat\n2,dog\n"))


def test_files_in_several_folders(folder: Path) -> None:
    """HAM10000's parts."""
    (folder / "b").mkdir()
    for name in ("b/7.jpg", "b/8.jpg", "a/8.jpg"):
        (folder / name).write_bytes(name.encode())
    text = "id,label\n" + "".join(f"{i},cat\n" for i in (1, 7, *[2] * 10, 8, 9))
    images, unusable = read(table(folder, text))
    assert images == [(f"{name}.jpg", "cat") for name in ("a/1", "b/7", *["a/2"] * 10)]
    assert unusable == [
        ("8", "line 14: no such file, but a/8.jpg and b/8.jpg exist; write the full path"),
        ("9", "line 15: no such file"),
    ]
    assert "the files are in a, b" in open_source(folder / "t.csv").explained


def test_urls_and_lines_of_one_cell(folder: Path) -> None:
    assert read(table(folder, "path,label\nhttps://x.org/1.jpg,cat\n"))[1] == [
        ("https://x.org/1.jpg", "line 2: a URL; download the images and write their paths")
    ]
    for text in ("3.png 0\na/1.jpg 1\n", "# made by hand\npath,label\n3.png,cat\n", "path\n3.png\n"):
        with pytest.raises(ValueError, match="has only one cell; separate cells with commas, semicolons, tabs, bars"):
            read(table(folder, text))
    with pytest.raises(ValueError, match=r"label in its first line image, a, b, c; .*if each class has its own column"):
        read(table(folder, "image,a,b,c\n3,0,1,0\n"))


def test_other_spellings_of_paths(folder: Path) -> None:
    assert read(table(folder, "path,label\na\\1.jpg,cat\n 3.png ,dog\n"))[0] == [("a/1.jpg", "cat"), ("3.png", "dog")]
    (folder / "a\\1.jpg").write_bytes(b"itself")
    assert read(table(folder, "path,label\na\\1.jpg,cat\n"))[0] == [("a\\1.jpg", "cat")]
    absolute = folder / "a/2.jpg"
    assert read(table(folder, f"path,label\n{absolute},cat\n"))[0] == [(str(absolute), "cat")]
    long = "x" * 5000
    reasons = [
        reason for _, reason in read(table(folder, f"path,label\nC:\\x.jpg,cat\n{long},cat\na,cat\n,dog\n3.png,c\n"))[1]
    ]
    assert reasons == [
        "line 2: no such file",
        "line 3: file name too long",
        "line 4: not a file",
        "line 5: has no path",
    ]


def test_labels_that_are_numbers(folder: Path) -> None:
    """As pandas writes a column of integers with a gap in it: as floats."""
    source = open_source(table(folder, "path,label\n3.png,10.0\na/1.jpg,2.0\na/1.jpg,1.0\na/1.jpg,\n"))
    found = list(source.images(folder))
    assert [image.key for image in found] == ["000010", "000002", "000001", ""]
    assert isinstance(found[3], Unusable)
    assert source.fixed_classes() == [f"{i:06d}" for i in range(11)]
    assert read(table(folder, "path,label\n3.png,-1\n3.png,007\n")) == (
        [("3.png", "000007")],
        [("3.png", "line 2: has no label, but '-1'")],
    )
    assert open_source(table(folder, "path,label\n3.png,cat\n")).fixed_classes() is None
    names = [key for _, key in read(table(folder, "path,label\n3.png,nana\n3.png,3 spots\n3.png,-\n3.png,1_0\n"))[0]]
    assert names == ["nana", "3 spots", "-", "1_0"]


@pytest.mark.parametrize("missing", ["NaN", "NA", "#N/A", "<NA>", "NULL"])
def test_what_programs_write_for_a_missing_label_is_no_class(folder: Path, missing: str) -> None:
    rows, unusable = read(table(folder, f"path,label\n3.png,cat\n3.png,{missing}\n"))
    assert rows == [("3.png", "cat")]
    assert unusable == [
        ("3.png", f"line 3: has no label, but {missing!r}; if this is a class, use another name for it")
    ]


@pytest.mark.parametrize("label", ["hot dog", '"red, white"', "[unknown]", "C++", "1st", "T-shirt/top", "T|S"])
def test_names_that_look_like_something_else(folder: Path, label: str) -> None:
    source = open_source(table(folder, f"path,label\n3.png,{label}\na/1.jpg,hot\na/2.jpg,dog\na/2.jpg,white\n"))
    assert next(iter(source.images(folder))).key == label.strip('"')
    assert source.fixed_classes() is None


@pytest.mark.parametrize("label", ["scab|rust", "scab;rust"])
def test_labels_that_are_several_of_the_others_are_refused(folder: Path, label: str) -> None:
    text = f"path,label\n3.png,{label}\na/1.jpg,scab\na/2.jpg,rust\n"
    source = open_source(table(folder, text))
    assert len(list(source.images(folder))) == 3
    with pytest.raises(ValueError, match=r"t.csv: line 2: the label .* combines several labels .'scab', 'rust'."):
        source.fixed_classes()
    source = open_source(table(folder, text.replace("a/2.jpg,rust", "a/2.jpg,spot")))
    assert len(list(source.images(folder))) == 3
    with pytest.raises(ValueError, match="combines several labels"):
        source.fixed_classes()


def test_a_missing_image_does_not_move_the_numbers(folder: Path) -> None:
    source = open_source(table(folder, "path,label\n3.png,0\nnone.jpg,5\n"))
    assert len(list(source.images(folder))) == 2
    assert source.fixed_classes() == [f"{i:06d}" for i in range(6)]


@pytest.mark.parametrize(
    ("label", "message"),
    [("1.5", "'1.5' is a number, but not a whole one"), ("-2", "-2 is below 0"), ("1000000", "id1000000"),
     ("16 0", "'16 0' is a list"), ("[3]", "'.3.' is a list"), ('"1,2,3"', "'1,2,3' is a list"),
     ('"1,000"', "'1,000' has a comma that may separate thousands or decimals"), ("a\x01b", "has control characters"),
     ("1e300", "class number"), ("cat", "mixed: the label 'cat', but 0 before .line 2.")],
)  # fmt: skip
def test_labels_that_are_none(folder: Path, label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(table(folder, f"path,label\n3.png,0\n3.png,{label}\n"))
    assert "t.csv: line 3" in str(caught.value)


def test_a_test_split_without_labels_is_left_out(folder: Path) -> None:
    path = table(folder, "path,label,split\n3.png,cat,train\na/1.jpg,,test\na/2.jpg,,test\na/1.jpg,cat,val\n3.png,,\n")
    source = open_source(path)
    found = list(source.images(folder))
    assert [(i.split, type(i)) for i in found] == [("train", SourceImage), ("val", SourceImage), ("", Unusable)]
    assert source.notes() == ["test: skipped, because none of its 2 rows has a label"]
    assert read(table(folder, "path,label,split\n3.png,,train\na/1.jpg,cat,val\n"))[1] == [
        ("3.png", "line 2: has no label")
    ]
