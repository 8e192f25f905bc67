"""The report's picture and page: their content, no outside files needed, and runs with missing pieces."""

import base64
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from penstock.commands.options import report_command as main
from penstock.training import report
from penstock.training.ending import ending
from penstock.training.metrics import MetricsLog
from penstock.training.report import curves, page, read_run, write_comparison, write_report
from penstock.training.report.runs import epoch_of, short_names

VOID = {"meta", "br", "wbr", "img", "path", "use", "rect", "i"}
EVIL = 'cat <script>alert("1")</script> & $x$'


class Page(HTMLParser):
    """A page's elements: texts, cells of its tables, attributes; and that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, first_heading: str, second: str = "") -> list[list[str]]:
        found = [t for t in self.tables if t[0][0] == first_heading and (not second or t[0][1] == second)]
        assert len(found) == 1, (first_heading, [t[0] for t in self.tables])
        return found[0]


def _page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def _write_run(run_dir: Path, *, epochs: int = 3, lr: float = 0.1, ema: bool = True, extras: bool = True) -> None:
    """A run of 5 steps an epoch, resumed once inside the second one."""
    with MetricsLog(run_dir) as log:
        for epoch in range(epochs):
            for i in (0, 1, 2, 1, 2, 3, 4) if epoch == 1 else range(5):
                step = {"step": 5 * epoch + i, "epoch": epoch, "position": 32 * (i + 1)}
                log.write("step", **step, loss=3.0 - epoch, lr=lr, images_per_s=100.0 + i, data_wait=0.1)
            end = {"step": 5 * epoch + 5, "epoch": epoch, "position": 160}
            log.write("epoch", **end, bad_samples=0, image_size=32 if epoch < 2 else 64)
            figures = {"top1": 0.2 * (epoch + 1), "top5": 0.9, "loss": 2.0, "num_images": 40}
            figures |= {"ema_top1": 0.25 * (epoch + 1), "ema_top5": 0.95, "ema_loss": 1.5} if ema else {}
            log.write("eval", step=end["step"], epoch=epoch + 1, position=0, **figures)
        log.write("end", step=5 * epochs, epoch=epochs, position=0, top1=0.6, seconds=3723.4, data_wait=0.125)
        log.write("test", step=5 * epochs, epoch=epochs, position=0, top1=0.4321, top5=0.8, loss=2.5, num_images=20)
    if extras:
        (run_dir / "config.toml").write_text(f'[optimizer]\nlr = {lr}\n\n[model]\nname = "<resnet>"\ndepth = 3\n')
        (run_dir / "defaults.toml").write_text('[optimizer]\nlr = 0.1\n\n[model]\nname = "resnet50"\ndepth = 3\n')
        (run_dir / "env.json").write_text(json.dumps({"git_commit": "0123456789abcdef", "packages": {"torch": "2"}}))
        _write_worst(run_dir)
        bad = ({"sample_id": i, "epoch": 1, "where": f"a.tar (\udcff<b>{i}.jpg)", "reason": "cut"} for i in range(70))
        (run_dir / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bad) + '{"sample_i')


def _write_worst(run_dir: Path) -> None:
    (run_dir / "worst").mkdir()
    Image.new("RGB", (8, 8)).save(run_dir / "worst" / "00-7.jpg")
    (run_dir.parent / "secret.jpg").write_bytes(b"secret")
    row = {"label_name": EVIL, "prediction_name": "dog", "loss": 9.125, "probability": 0.995, "source": "a/b.JPEG"}
    worst = [row | {"file": file} for file in ("worst/00-7.jpg", None, "../secret.jpg", "worst/gone.jpg")]
    worst[1]["loss"] = None
    confused = [{"label_name": EVIL, "prediction_name": "dog", "count": 12, "share": 0.24}]
    lowest = [{"label_name": EVIL, "accuracy": 0.125, "num_images": 50}]
    content = {"worst": worst, "confused": confused, "lowest": lowest}
    (run_dir / "worst.json").write_text(json.dumps(content))


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pages without curves, which take seconds to draw, for tests that check only the text."""
    monkeypatch.setattr(report, "picture", lambda runs, title: b"")
    monkeypatch.setattr(page, "svgs", lambda runs: [])


def test_the_page_shows_what_the_run_left(tmp_path: Path) -> None:
    run_dir = tmp_path / "a run"
    _write_run(run_dir, lr=0.5)
    picture, path = write_report(run_dir)
    assert (picture, path) == (run_dir / "report.png", run_dir / "report.html")
    page = _page(path)
    results = page.table("", "top-1")
    assert results[0] == [
        "",
        "top-1",
        "top-5",
        "loss",
        "EMA top-1",
        "EMA top-5",
        "EMA loss",
        "images",
        "epochs done",
        "steps done",
    ]
    assert results[1] == [
        "last validation",
        "0.6000",
        "0.9000",
        "2.0000",
        "0.7500",
        "0.9500",
        "1.5000",
        "40",
        "3",
        "15",
    ]
    assert results[3][:4] == ["test", "0.4321", "0.8000", "2.5000"]
    assert page.table("true class")[1] == [EVIL, "dog", "12", "24.0%"]
    assert page.table("class", "top-1")[1] == [EVIL, "0.1250", "50"]
    assert page.table("setting")[1:] == [
        ["optimizer.lr", "0.5", "0.1"],
        ["model.name", "<resnet>", "resnet50"],
        ["model.depth", "3", "3"],
    ]
    assert page.table("changed setting")[1:] == page.table("setting")[1:3]
    html = path.read_text(encoding="utf-8")
    assert [row.count("class=changed") for row in html.split("<tr")[1:] if "model.<wbr>depth" in row] == [0]
    assert html.count("<tr class=changed>") == 2
    assert ["packages.torch", "2"] in page.table("name")
    bad = page.table("epoch", "sample")
    assert len(bad) == 51
    assert bad[1] == ["1", "0", "a.tar (?<b>0.jpg)", "cut"]
    for text in (
        "Quarantined samples: 70",
        "20 more are in quarantine.jsonl",
        "commit 0123456789ab",
        "Finished after step 15",
        "1:02:03",
    ):
        assert text in page.text
    assert "9.12" in page.text
    assert "loss NaN or infinite" in page.text


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path: Path) -> None:
    _write_run(tmp_path / "run")
    _, path = write_report(tmp_path / "run")
    page = _page(path)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value[:80])
            assert name.startswith("xmlns") or "http" not in (value or ""), (tag, name, value)
    style = path.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (image,) = page.all("img")  # one of four has a picture in the run's directory
    assert base64.b64decode(image["src"].partition(",")[2]) == (tmp_path / "run/worst/00-7.jpg").read_bytes()
    assert EVIL in page.text


def test_the_curves_are_of_both_themes_and_their_references_hold(tmp_path: Path) -> None:
    _write_run(tmp_path / "run")
    _, path = write_report(tmp_path / "run")
    html, page = path.read_text(encoding="utf-8"), _page(path)
    assert len(page.all("svg")) == 6
    names = [svg["aria-label"] for svg in page.all("svg")]
    assert names == [
        "loss",
        "validation accuracy",
        "learning rate",
        "training speed, images/s",
        "time waiting for data, %",
        "image size, px",
    ]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', html))
    assert used == set(ids)
    light, dark = (dict(re.findall(r"(--\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", html))
    assert set(re.findall(r"var\((--\w+)\)", html)) <= set(light)
    assert set(light) == set(dark)
    for theme in (light, dark):
        for name in ("--ink", "--soft", "--c0", "--c1", "--c2", "--c3"):
            assert _contrast(theme[name], theme["--card"]) >= (4.5 if name in ("--ink", "--soft") else 3)
    svg = html.partition("<svg")[2].partition("</svg>")[0]
    colours = set(re.findall(r"#[0-9a-f]{6}\b", svg))
    assert colours <= {"#ffffff", "#000000"}  # no colour but through the page's variables


def _contrast(a: str, b: str) -> float:
    """WCAG 2.1's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_the_picture_has_a_panel_for_what_there_is(tmp_path: Path) -> None:
    _write_run(tmp_path / "run")
    picture, _ = write_report(tmp_path / "run")
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
        assert image.size == (1518, 770)  # 3 × 2 panels
    inked = (pixels < 200).any(2)
    for y in range(2):
        for x in range(3):
            assert inked[60 + 350 * y : 380 + 350 * y, 506 * x : 506 * (x + 1)].sum() > 2000
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def _drawn(tmp_path: Path, *folders: str) -> dict[str, list]:
    """The curves of each panel, as matplotlib has them."""
    from matplotlib.figure import Figure

    runs = [read_run(tmp_path / folder) for folder in folders]
    axes = {panel.name: Figure().subplots() for panel in curves.shown_panels(runs)}
    for panel in curves.shown_panels(runs):
        curves.draw(axes[panel.name], panel, runs)
    return axes


def test_curves_go_through_the_figures_over_epochs(tmp_path: Path) -> None:
    _write_run(tmp_path / "run")
    axes = _drawn(tmp_path, "run")
    (lr,) = axes["learning rate"].lines
    np.testing.assert_allclose(lr.get_xdata(), (np.arange(15) + 1) / 5)  # a step that was made again counts once
    np.testing.assert_allclose(lr.get_ydata(), 0.1)
    (wait,) = axes["time waiting for data, %"].lines
    np.testing.assert_allclose(wait.get_ydata(), 10)
    accuracy = axes["validation accuracy"]
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["top-1 0.6000", "top-1, EMA 0.7500", "top-5 0.9000", "top-5, EMA 0.9500"]
    np.testing.assert_allclose(accuracy.lines[1].get_xydata(), [(1, 0.25), (2, 0.5), (3, 0.75)])
    size = axes["image size, px"].lines[0]
    assert size.get_drawstyle() == "steps-pre"
    np.testing.assert_allclose(size.get_xydata(), [(0, 32), (1, 32), (2, 32), (3, 64)])


def test_several_runs_have_a_colour_each_and_lines_by_series(tmp_path: Path) -> None:
    _write_run(tmp_path / "a")
    _write_run(tmp_path / "b", epochs=2, ema=False)
    axes = _drawn(tmp_path, "a", "b")
    accuracy = axes["validation accuracy"]
    styles = [(line.get_color(), line.get_linestyle()) for line in accuracy.lines]
    assert styles == [(curves.PALETTE[0], "-"), (curves.PALETTE[0], "--"), (curves.PALETTE[1], "-")]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["top-1", "top-1, EMA"]
    assert len(axes["loss"].lines) == 4  # training and validation of each
    many = [read_run(tmp_path / "a")] * 12
    assert len(set(curves.colours(many))) == 12


def test_an_unfinished_epoch_is_as_long_as_its_neighbour_and_without_one_it_is_steps(tmp_path: Path) -> None:
    _write_run(tmp_path / "a", epochs=1)
    with MetricsLog(tmp_path / "a") as log:
        log.write("step", step=5, epoch=1, position=80, loss=1.0, lr=0.1)
    run = read_run(tmp_path / "a")
    positions = epoch_of(run, run.steps)
    assert positions is not None
    np.testing.assert_allclose(positions, [0.2, 0.4, 0.6, 0.8, 1.0, 1.5])
    with MetricsLog(tmp_path / "b") as log:
        log.write("step", step=0, epoch=0, position=32, loss=1.0, lr=0.1)
    axes = _drawn(tmp_path, "a", "b")
    assert axes["loss"].get_xlabel() == "step"
    assert axes["loss"].lines[0].get_xdata()[-1] == 5


def test_a_size_that_never_changes_has_no_panel(tmp_path: Path) -> None:
    _write_run(tmp_path / "constant", epochs=2)
    _write_run(tmp_path / "changing", epochs=3)
    assert "image size, px" not in _drawn(tmp_path, "constant")
    assert "image size, px" in _drawn(tmp_path, "constant", "changing")


@pytest.mark.parametrize("kind", ["step", "eval", "nan"])
def test_a_killed_run_has_a_report(tmp_path: Path, kind: str) -> None:
    with MetricsLog(tmp_path) as log:
        if kind == "eval":
            log.write("eval", step=4, top1=0.25, loss=math.nan, num_images=4)
        for step in range(4 * (kind != "eval")):
            loss = math.nan if kind == "nan" and step >= 2 else 1.0
            log.write("step", step=step, epoch=0, position=step, loss=loss, lr=0.1)
    for name in ("config.toml", "env.json", "worst.json", "defaults.toml", "quarantine.jsonl"):
        (tmp_path / name).write_text('{"cut')
    picture, path = write_report(tmp_path)
    page = _page(path)
    assert "Not finished" in page.text
    assert ("The loss is NaN or infinite at 2 steps, first at step 2." in page.text) == (kind == "nan")
    assert ("0.2500" in page.text) == (kind == "eval")
    assert Image.open(picture).size[0] > 400


def _end(run_dir: Path, **fields: object) -> str:
    """The page's text about a run with this end."""
    with MetricsLog(run_dir) as log:
        for step in range(14):
            log.write("step", step=step, epoch=0, position=step, loss=1.0, lr=0.1, images_per_s=4.26)
        log.write("end", step=14, **fields)
    return _page(write_report(run_dir)[1]).text


@pytest.mark.usefixtures("blank")
def test_the_page_says_what_ended_the_run(tmp_path: Path) -> None:
    full = ending(total_steps=14, epochs=2, schedule_epoch=2.0, data_epochs=2.0)
    assert "Finished after step 14." in _end(tmp_path / "full", **full)
    cut = ending(total_steps=330, epochs=22, schedule_epoch=0.93, data_epochs=0.93)
    assert "Stopped by --max-steps after 14 of 330 steps." in _end(tmp_path / "cut", **cut)
    fitted = ending(total_steps=330, epochs=22, schedule_epoch=22.0, data_epochs=0.93)
    text = _end(tmp_path / "fitted", **fitted)
    assert "Finished after step 14: --max-minutes shortened the 22 epochs to 0.93 epochs of images." in text
    with MetricsLog(tmp_path / "cut") as log:  # it went on, and was killed
        log.write("step", step=14, epoch=0, position=15, loss=1.0, lr=0.1)
    text = _page(write_report(tmp_path / "cut")[1]).text
    assert "Not finished: 15 steps done so far." in text


@pytest.mark.usefixtures("blank")
def test_rates_and_steps_are_the_terminals(tmp_path: Path) -> None:
    """That has the mean over all of the training, with its slow start, and counts the steps that are done."""
    _end(tmp_path / "a", images_per_s=3.14159)
    _write_run(tmp_path / "b", epochs=1)  # 100 … 104 images/s, no rate at its end
    with MetricsLog(tmp_path / "c") as log:
        for step, images_per_s in enumerate((10.0, 30.0)):
            log.write("step", step=step, epoch=0, position=step, loss=1.0, lr=0.1, images_per_s=images_per_s)
    _, path = write_comparison([tmp_path / name for name in "abc"], tmp_path / "cmp.html")
    results = _page(path).table("run")
    columns = dict(zip(results[0], zip(*results[1:], strict=True), strict=True))
    assert columns["images/s"] == ("3.1", "102", "15")
    assert columns["steps"] == ("14", "5", "2")
    assert "test top-1" in columns
    assert "EMA top-1" in columns
    _, path = write_comparison([tmp_path / name for name in "ac"], tmp_path / "cmp.html")
    assert _page(path).table("run")[0] == ["run", "images/s", "steps"], "no column without a figure"
    page = _page(write_report(tmp_path / "a")[1])
    assert "3.1images/s, mean" in page.text
    assert "4.3images/s, median" in page.text


@pytest.mark.usefixtures("blank")
def test_a_validation_on_a_choice_says_so(tmp_path: Path) -> None:
    _write_run(tmp_path, epochs=1)
    with MetricsLog(tmp_path) as log:
        log.write("eval", step=6, epoch=1, position=0, top1=0.5, loss=1.0, num_images=40, split_images=10_000)
    page = _page(write_report(tmp_path)[1])
    assert "Validated on 40 of 10000 images (--max-val-images). Use these figures for trials only." in page.text
    assert "40 of 10000" in page.table("", "top-1")[1]


def test_words_of_a_table_are_not_broken() -> None:
    """With "anywhere" a column may be as narrow as a letter, and then is; a long word alone is to be broken."""
    css = (Path(curves.__file__).parent / "page.css").read_text(encoding="utf-8")
    (cells,) = re.findall(r"\nth, td \{([^}]*)\}", css)
    assert "overflow-wrap: break-word" in cells
    assert "max-width" in cells


@pytest.mark.usefixtures("blank")
def test_long_names_break_between_their_words_and_numbers_are_aligned(tmp_path: Path) -> None:
    _write_run(tmp_path, epochs=1)
    with (tmp_path / "config.toml").open("a") as file:
        file.write('pretrained = "a/weights_of.pt"\n')
    html = write_report(tmp_path)[1].read_text(encoding="utf-8")
    assert "<td>model.<wbr>pretrained</td><td>a/<wbr>weights_<wbr>of.<wbr>pt</td>" in html
    assert '<th scope="col" class=n>top-1</th>' in html
    assert "<td class=n>0.2000</td>" in html
    # A column with words in it has its numbers on the left, beside them.
    assert "<td>model.<wbr>depth</td><td>3</td><td>3</td>" in html


@pytest.mark.usefixtures("blank")
def test_every_part_has_a_heading_and_all_settings_are_folded(tmp_path: Path) -> None:
    _write_run(tmp_path)
    html = write_report(tmp_path)[1].read_text(encoding="utf-8")
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "Curves",
        "Results",
        "Validation images with the largest loss",
        "Most confused classes",
        "Classes with the lowest accuracy",
        "Quarantined samples: 70",
        "Settings that differ from the defaults",
        "All settings",
        "Environment",
    ]
    assert html.count("<h1>") == 1
    assert "<details><summary><h2>All settings" in html
    assert html.count("<details open>") == 2


def test_on_paper_tables_are_whole_and_the_page_is_light() -> None:
    css = (Path(curves.__file__).parent / "page.css").read_text(encoding="utf-8")
    paper = css.partition("@media print {")[2]
    assert ".scroll { overflow: visible; }" in paper  # what is scrolled out of sight is not printed
    assert ".card, .short, tr { break-inside: avoid; }" in paper
    assert "max-width: none" in paper
    assert re.findall(r"@media[^{]*prefers-color-scheme[^{]*", css) == [
        "@media screen and (prefers-color-scheme: dark) "
    ]


def test_text_of_the_curves_is_large_enough_in_the_narrowest_column() -> None:
    css = (Path(curves.__file__).parent / "page.css").read_text(encoding="utf-8")
    (rem,) = re.findall(r"minmax\(min\((\d+)rem, 100%\)", css)
    inner = 16 * int(rem) - 2 * 0.8 * 16  # pixels, without the card's padding
    enlarged = inner / (72 * curves._SVG_INCHES[0])
    assert 9 * enlarged >= 11, "CSS pixels of the smallest text"


def test_all_panels_are_over_the_same_epochs(tmp_path: Path) -> None:
    _write_run(tmp_path / "run")
    with MetricsLog(tmp_path / "run") as log:
        log.write("eval", step=15, epoch=3, position=0, top1=0.5, loss=1.0, num_images=4)
    limits = {axes.get_xlim() for axes in _drawn(tmp_path, "run").values()}
    assert limits == {(0, 3 * 1.02)}


@pytest.mark.usefixtures("blank")
def test_a_worst_json_of_another_shape_costs_its_section_only(tmp_path: Path) -> None:
    _write_run(tmp_path / "run")
    (tmp_path / "run/worst.json").write_text('{"worst": [1, {"label_name": null}], "confused": 3, "lowest": [{}]}')
    _, path = write_report(tmp_path / "run")
    assert "no picture" in _page(path).text


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics.jsonl: no such file"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "end"}\n')
    with pytest.raises(ValueError, match="nothing to draw"):
        write_report(tmp_path)


def test_the_comparison_has_results_and_the_settings_that_differ(tmp_path: Path) -> None:
    _write_run(tmp_path / "x/run")
    _write_run(tmp_path / "y/run", lr=0.5, ema=False)
    _write_run(tmp_path / "_$z", lr=0.1, extras=False)
    out = tmp_path / "new/cmp.png"
    picture, path = write_comparison([tmp_path / "x/run", tmp_path / "y/run", tmp_path / "_$z"], out)
    assert (picture, path) == (out, out.with_suffix(".html"))
    page = _page(path)
    names = [f"{tmp_path.name}/_$z", "x/run", "y/run"]
    results = page.table("run")
    assert sorted(row[0] for row in results[1:]) == names
    columns = dict(zip(results[0], zip(*results[1:], strict=True), strict=True))
    assert columns["EMA top-1"] == ("0.7500", "–", "0.7500")
    assert columns["best top-1"] == ("0.7500", "0.6000", "0.7500")
    assert columns["test top-1"] == ("0.4321",) * 3
    assert columns["time"] == ("1:02:03",) * 3
    differing = page.table("setting")
    assert differing[1] == ["optimizer.lr", "0.1", "0.5", "–"]
    assert [row[0] for row in differing[1:]] == ["optimizer.lr", "model.name", "model.depth"]
    assert len(page.all("svg")) == 6
    for name in names:
        assert page.text.count(name) == 3  # legend, results, settings
    # The picture names the runs too: the legend's row is not empty.
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert (pixels[-25:] < 60).any(0).sum() > 100  # letters, darker than the runs' colours


def test_names_are_as_long_as_it_takes(tmp_path: Path) -> None:
    for folder in ("p/a/run", "q/a/run", "q/b/run2"):
        _write_run(tmp_path / folder, epochs=1, extras=False)
    runs = [read_run(tmp_path / folder) for folder in ("p/a/run", "q/a/run", "q/b/run2")]
    assert short_names(runs[1:]) == ["run", "run2"]
    assert short_names(runs) == ["p/a/run", "q/a/run", "q/b/run2"]
    assert short_names([runs[0], runs[0]]) == ["run", "run"]


@pytest.mark.usefixtures("blank")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / os.fsdecode(b"odd-\xff")
    _write_run(odd, epochs=1, extras=False)
    _write_run(tmp_path / "b", epochs=1, extras=False)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [str(odd)])
    assert done.exit_code == 0, done.output
    assert (odd / "report.html").is_file()
    done = CliRunner().invoke(main, ["b", "--out", "one.html"])
    assert done.output.splitlines() == ["one.png", "one.html"]
    assert not Path("b/report.html").exists()
    done = CliRunner().invoke(main, ["b", str(odd)])
    assert done.exit_code == 0, done.output
    assert {"comparison.html", "comparison.png"} <= {path.name for path in tmp_path.iterdir()}
    assert Path("b/report.html").is_file()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "comparison.html").unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = CliRunner().invoke(main, ["../b", str(odd)])
    assert done.output.splitlines()[-1] == "../comparison.html", "beside the runs, not where one happens to be"
    assert (tmp_path / "comparison.html").is_file()
    monkeypatch.chdir(tmp_path / "b")
    done = CliRunner().invoke(main, [".", "../b"])
    assert done.output.splitlines()[-1] == str(tmp_path / "comparison.html")
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = CliRunner().invoke(main, ["../b", str(odd), "-o", "here.html"])
    assert sorted(path.name for path in Path().iterdir()) == ["here.html", "here.png"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["b", "gone"])
    assert done.exit_code == 1
    assert "Error: gone/metrics.jsonl: no such file" in done.output


def test_smoothing_keeps_a_constant_and_passes_over_nan() -> None:
    values = np.full(500, 2.0)
    values[100] = np.nan
    np.testing.assert_allclose(curves.smooth(values), 2.0)
