"""Results → pictures and benchmarks/README.md."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks import plot, record
from benchmarks.plot import FOLDER, Result, figures
from training.report.curves import PALETTE

ENV = {"cpu": "Some CPU", "cores_allowed": 2.0, "gpu": None}


def result(
    benchmark: str = "loader", time: str = "2030-01-31T12:00:00", rates: dict[str, float] | None = None, **settings: Any
) -> dict[str, Any]:
    """A result with three repeats of each program, 10 % around its rate."""
    rates = rates or {"dali": 1000.0}
    base = {"data": "/data/some", "batch_size": 100, "image_size": 224, "threads": 2, "device": "cpu", "ranks": 1,
            "seconds": 5.0}  # fmt: skip
    return {
        "format": record.FORMAT, "benchmark": benchmark, "command": f"python bench.py {benchmark} --x 'a|b'",
        "time": time, "settings": base | settings, "env": ENV, "warnings": [],
        "programs": {name: {"images_per_s": [0.9 * rate, rate, 1.1 * rate]} for name, rate in rates.items()},
        "ratios": {},
    }  # fmt: skip


def results(*contents: dict[str, Any]) -> list[Result]:
    return [Result(Path(f"{number}.json"), content) for number, content in enumerate(contents)]


@pytest.mark.parametrize("name", plot.SETTINGS)
def test_results_that_differ_in_one_setting_make_a_line(name: str) -> None:
    (figure,) = figures(results(*(result(rates={"dali": 100.0 * value}, **{name: value}) for value in (4, 2, 3))))
    assert figure.name == f"loader-by-{name.replace('_', '-')}"
    (line,) = figure.lines
    assert [x for x, _ in line.points] == [2, 3, 4]
    assert [np.median(rates) for _, rates in line.points] == [200, 300, 400]


def test_results_that_differ_in_more_do_not() -> None:
    other = {"threads": 4, "image_size": 64}
    assert figures(results(result(), result(**other))) == []
    gpu = result(threads=4, device="cuda") | {"env": ENV | {"gpu": "Some GPU"}}
    assert figures(results(result(), gpu)) == []
    assert figures(results(result(), result("train", threads=4))) == []


def test_datasets_that_repeat_the_same_images_make_a_line() -> None:
    grown = [result(data=f"data/some-{rows}", num_samples=rows) for rows in (1000, 100)]
    (figure,) = figures(results(*grown, result(data="data/other-10", num_samples=10)))
    assert figure.name == "loader-by-num-samples"
    assert [x for x, _ in figure.lines[0].points] == [100, 1000]


def test_the_newest_of_two_counts_and_both_are_drawn_over_time() -> None:
    old, new = result(rates={"dali": 500.0}), result(time="2030-02-01T12:00:00", seconds=2.0)
    over_time, by_threads = figures(results(new, old, result(threads=4)))
    assert [np.median(rates) for _, rates in over_time.lines[0].points] == [500, 1000]
    assert dict(by_threads.lines[0].points)[2] == new["programs"]["dali"]["images_per_s"]


def test_lines_are_named_by_what_tells_them_apart() -> None:
    several = [result(threads=threads, image_size=size) for threads in (1, 2) for size in (64, 224)]
    by_threads = next(figure for figure in figures(results(*several)) if figure.name == "loader-by-threads")
    assert [line.name for line in by_threads.lines] == ["dali, image size 224", "dali, image size 64"]


def test_peers_are_sorted_bars() -> None:
    (figure,) = figures(results(result("peers", rates={"penstock": 1500.0, "timm": 500.0, "ffcv": 1600.0})))
    assert [name for name, _ in figure.bars] == ["ffcv", "penstock", "timm"]


def colours(path: Path) -> set[tuple[int, int, int]]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return set(map(tuple, np.unique(pixels, axis=0).tolist()))


def rgb(colour: str) -> tuple[int, int, int]:
    return tuple(bytes.fromhex(colour[1:]))  # type: ignore[return-value]


def test_pictures_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    several = [result(threads=threads, rates={"a": 100.0 * threads, "b": 101.0 * threads}) for threads in (1, 2)]
    (lines,) = figures(results(*several))
    (bars,) = figures(results(result("peers", rates={"penstock": 1500.0, "timm": 500.0})))
    for figure in (lines, bars):
        png = plot.draw(figure, tmp_path / "one")
        assert png.read_bytes() == plot.draw(figure, tmp_path / "two").read_bytes()
        assert {rgb(PALETTE[0]), rgb(PALETTE[1])} <= colours(png), "two colours that colour-blind readers tell apart"


def test_names_at_the_lines_ends_do_not_overlap() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [plot.Line(name, [(1, [100.0]), (2, [rate])]) for name, rate in (("a", 100.0), ("b", 101.0), ("c", 900.0))]
    canvas, axes = plt.subplots(figsize=(7, 4))
    plot._draw_lines(axes, plot.Figure("x", "x", "threads", tuple(names)))
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    plt.close(canvas)
    assert len(boxes) == 3
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))


def test_the_command_draws_files_and_skips_what_is_none(tmp_path: Path) -> None:
    for number, content in enumerate([result(threads=1), result(threads=2), {"format": 1}]):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    arguments = [*map(str, sorted(tmp_path.glob("*.json"))), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(plot.command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "2.json: has format 1" in done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["loader-by-threads.png"]


def test_the_page_has_each_programs_figures_and_command(tmp_path: Path) -> None:
    content = result("peers", rates={"penstock": 1500.0, "timm": 500.0}, threads=3)
    content["ratios"] = {"penstock / timm": {"median": 3.0, "low": 2.9, "high": 3.14, "min": 2.8, "max": 3.2}}
    content["programs"]["timm"]["memory_mb"] = 2600.4
    content["warnings"] = ["other processes took 50%"]
    content["skipped"] = {"ffcv": "is not installed"}
    record.write(tmp_path / "peers-x.json", content)
    (tmp_path / "old.json").write_text("{}")
    text = plot.page(tmp_path)
    cells = ["timm", "500 [450–550]", "3.00 [2.90–3.14]", "2,600", "some, × 100, 224 px, 3 threads",
             "Some CPU, 2 cores"]  # fmt: skip
    assert f"| {' | '.join(cells)} |" in text
    assert text.count("- [peers-x.json](results/peers-x.json): `python bench.py peers --x 'a|b'`\n") == 1
    assert "- [peers-x.json](results/peers-x.json): warning: other processes took 50%" in text
    assert "ffcv skipped: is not installed" in text
    assert "`old.json`" in text.partition("Not shown")[2]
    assert "(plots/peers-x.png)" in text


def test_the_readmes_table_has_a_column_a_set_of_images(tmp_path: Path) -> None:
    for number, (data, size, rates) in enumerate(
        [("small", 32, {"penstock": 30000.0, "dali": 25000.0}),
         ("large", 224, {"penstock": 1500.0, "timm": 500.0, "dali": 750.0})]
    ):  # fmt: skip
        content = result("peers", rates=rates, data=f"data/{data}", image_size=size)
        content["ratios"] = {
            f"penstock / {name}": {"median": rates["penstock"] / rate, "low": 1, "high": 1, "min": 1, "max": 1}
            for name, rate in rates.items()
            if name != "penstock"
        }
        record.write(tmp_path / f"{number}.json", content)
    file = tmp_path / "README.md"
    file.write_text(f"before\n{plot.BEGIN}\nold\n{plot.END}\nafter\n")
    plot.write_front(file, tmp_path)
    assert file.read_text().splitlines() == [
        "before", plot.BEGIN,
        "| images/s (ours / theirs) | large, 224 px | small, 32 px |", "| --- | ---: | ---: |",
        "| penstock | 1,500 | 30,000 |", "| dali | 750 (2.00) | 25,000 (1.20) |", "| timm | 500 (3.00) | – |",
        plot.END, "after",
    ]  # fmt: skip
    file.write_text("nothing")
    with pytest.raises(ValueError, match="has no place for the table"):
        plot.write_front(file, tmp_path)


def test_the_readmes_are_what_the_results_say(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_bytes(plot.FRONT.read_bytes())
    plot.write_front(copy)
    assert copy.read_bytes() == plot.FRONT.read_bytes(), "run: python bench.py plot --readme"


def test_benchmarks_readme_is_what_the_results_say() -> None:
    text = plot.PAGE.read_text(encoding="utf-8")
    assert text == plot.page(), "run: python bench.py plot --readme"
    for picture in re.findall(r"\]\((plots/[^)]+)\)", text):
        assert (FOLDER / picture).exists()
