"""Results → pictures, and the tables of docs/results.md."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from penstock.benchmarks import plot, record
from penstock.benchmarks.docs import results_page as pages
from penstock.benchmarks.measure import Ratio
from penstock.benchmarks.plot import figures
from penstock.benchmarks.record import Figures, Result
from penstock.training.report.curves import PALETTE

ENV = {"cpu": "Some CPU", "cores_allowed": 2.0, "gpu": None}


def result(benchmark: str = "loader", rates: dict[str, float] | None = None, **settings: object) -> Result:
    """A result with three repeats of each program, 10 % around its rate."""
    base = {"data": "/data/some", "batch_size": 100, "image_size": 224, "threads": 2, "device": "cpu", "ranks": 1}
    return Result(
        benchmark=benchmark, command=f"python bench.py {benchmark} --x 'a|b'", time="2030-01-31T12:00:00",
        settings=base | settings, env=ENV, warnings=[], ratios={},
        programs={name: Figures([0.9 * rate, rate, 1.1 * rate]) for name, rate in (rates or {"dali": 1000.0}).items()},
    )  # fmt: skip


def grown(series: str, *numbers: int, rates: dict[str, float] | None = None) -> dict[Path, Result]:
    """A program's rate is as many times its first as the number says."""
    return {
        Path(f"growth-{series}-{number}.json"): result(
            rates={name: number * rate for name, rate in (rates or {"dali": 100.0}).items()}
        )
        for number in numbers
    }


def test_a_series_makes_a_line_a_program() -> None:
    alone = {Path("growth-ranks-9.json"): result(rates={"once": 1.0})}
    threads, ranks = figures(grown("threads", 4, 2, 3) | grown("ranks", 1, 2) | alone)
    assert (threads.name, ranks.name) == ("growth-threads", "growth-ranks")
    assert list(threads.lines["dali"]) == [2, 3, 4]
    assert [np.median(rates) for rates in threads.lines["dali"].values()] == [200, 300, 400]
    assert list(ranks.lines) == ["dali"], "what was measured once is no line"


def test_other_results_make_no_picture() -> None:
    assert figures({Path("a.json"): result(), Path("b.json"): result(threads=4)}) == []


def test_peers_are_sorted_bars() -> None:
    rates = {"penstock": 1500.0, "timm": 500.0, "ffcv": 1600.0}
    (figure,) = figures({Path("peers-x.json"): result("peers", rates)})
    assert figure.name == "peers-x"
    (stages,) = figures({Path("explain-x.json"): result("explain", rates)})
    assert (stages.name, list(stages.bars), stages.is_logarithmic) == ("explain-x", list(rates), True)
    assert list(figure.bars) == ["ffcv", "penstock", "timm"]


def colours(path: Path) -> set[tuple[int, int, int]]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return set(map(tuple, np.unique(pixels, axis=0).tolist()))


def rgb(colour: str) -> tuple[int, int, int]:
    return tuple(bytes.fromhex(colour[1:]))  # type: ignore[return-value]


def test_pictures_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    (lines,) = figures(grown("rows", 1, 2000, rates={"a": 100.0, "b": 101.0}))
    (bars,) = figures({Path("x.json"): result("peers", {"penstock": 1500.0, "timm": 500.0})})
    for figure in (lines, bars):
        png = plot.draw(figure, tmp_path / "one")
        assert png.read_bytes() == plot.draw(figure, tmp_path / "two").read_bytes()
        assert {rgb(PALETTE[0]), rgb(PALETTE[1])} <= colours(png), (
            "two colours that colour-blind readers can distinguish"
        )


def test_the_command_draws_results_and_refuses_other_files(tmp_path: Path) -> None:
    for path, content in grown("threads", 1, 2).items():
        record.write(tmp_path / path, content)
    (tmp_path / "old.json").write_text('{"format": 1}')
    arguments = [*map(str, sorted(tmp_path.glob("*.json"))), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(plot.command, arguments, catch_exceptions=False)
    assert done.exit_code == 1, done.output
    assert "Error: skipped" in done.output
    assert "old.json: has format 1" in done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["growth-threads.png"]


def test_the_page_has_each_programs_figures_and_a_command() -> None:
    content = result("peers", {"penstock": 1500.0, "timm": 500.0}, threads=3)
    content.programs["timm"] = replace(content.programs["timm"], memory_mb=2600.4)
    content.ratios["penstock / timm"] = Ratio(3.0, 2.9, 3.14, 2.8, 3.2)
    content = replace(content, warnings=["other processes used 50%"], more={"skipped": {"ffcv": "is not installed"}})
    text = pages.page({Path("peers-x.json"): content})
    cells = ["timm", "500 [450–550]", "3.00 [2.90–3.14]", "2,600",
             "some, batch 100, 224 px, 3 threads", "`peers-x.json`", "Some CPU, 2 cores"]  # fmt: skip
    assert f"| {' | '.join(cells)} |" in text
    assert text.count("```bash\npython bench.py peers --x 'a|b'\n```") == 1
    assert "1 warnings" in text
    assert "ffcv skipped: is not installed" in text
    assert "(images/results/peers-x.png)" in text


def test_results_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for path, content in grown("threads", 10, 9).items():
        record.write(tmp_path / path, content)
    for name in ("gpu-check.json", "run-x.json", "first-run-x.json"):
        (tmp_path / name).write_text("[]")
    said: list[str] = []
    found = pages.read_files(list(tmp_path.iterdir()), said.append)
    assert [path.name for path in found] == ["growth-threads-9.json", "growth-threads-10.json"]
    assert said == []


def test_the_table_of_peers_has_a_column_a_set_of_images() -> None:
    measured = []
    for data, size, rates in (("small", 32, {"penstock": 30000.0, "dali": 25000.0}),
                              ("large", 224, {"penstock": 1500.0, "timm": 500.0, "dali": 750.0})):  # fmt: skip
        ratios = {f"penstock / {n}": Ratio(rates["penstock"] / r, 1, 1, 1, 1) for n, r in rates.items() if n[0] != "p"}
        measured.append(replace(result("peers", rates, data=f"data/{data}", image_size=size), ratios=ratios))
    assert pages.peers_table([*measured, result()]).splitlines() == [
        "| images/s (ours / theirs) | large, 224 px | small, 32 px |", "| --- | ---: | ---: |",
        "| penstock | 1,500 | 30,000 |", "| dali | 750 (2.00) | 25,000 (1.20) |", "| timm | 500 (3.00) | – |",
    ]  # fmt: skip


def test_the_readmes_picture_is_for_light_and_for_dark_pages(tmp_path: Path) -> None:
    content = result("peers", {"penstock": 1500.0, "timm": 500.0})
    light, dark = (plot.draw_front(content, tmp_path, theme) for theme in ("light", "dark"))
    for picture, ink in ((light, plot.THEMES["light"][0]), (dark, plot.THEMES["dark"][0])):
        text = picture.read_text()
        assert ink in text
        assert text == plot.draw_front(content, tmp_path, picture.stem.rpartition("-")[2]).read_text()
    assert plot.THEMES["dark"][0] not in light.read_text()


def test_every_picture_of_the_page_exists() -> None:
    for picture in re.findall(r"\]\(images/(results/[^)]+)\)", pages.page(pages.read_all())):
        assert (pages.PICTURES.parent / picture).exists()
