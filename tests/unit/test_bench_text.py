"""The printed output of `bench.py`: rates with significant digits, lines that fit and break between words."""

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.benchmarks import peers, record, tables
from penstock.benchmarks.explain import report as explain_report
from penstock.benchmarks.measure import Ratio
from penstock.benchmarks.record import Figures
from penstock.benchmarks.text import shown_rate, tabulated, wrapped

LONG = "expected 1.30 times: whole decoding takes 0.06 times as long as libjpeg-turbo's, re-encoded and well-behaved"

RESULT = record.build("peers", {}, {}, {}, [])


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(31877.4, "31,877"), (10.4, "10"), (9.96, "10"), (9.94, "9.9"), (3.04, "3.0"), (0.996, "1.0"), (0.04, "0.04")],
)
def test_slow_rates_have_decimals(rate: float, shown: str) -> None:
    assert shown_rate(rate) == shown


def test_words_and_commands_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "--set phases.image_size=" + "[160,224]," * 12
    for columns in (40, 60, 80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = wrapped(f"     {LONG} {command}")
        assert " ".join(line.strip() for line in lines).split() == f"{LONG} {command}".split()
        assert all(len(line) <= columns for line in lines if "phases" not in line)


def test_a_programs_figures_are_cells() -> None:
    figures = Figures([3.04, 2.5, 9.94], data_wait=[0.995, 0.9, 1.0], first_batch_s=6.09, memory_mb=1992.0)
    train, loader = (replace(RESULT, benchmark=name, programs={"dali": figures}) for name in ("train", "loader"))
    assert tables.columns_of([train]) == ["data_wait", "memory_mb", "first_batch_s"]
    assert tables.columns_of([loader]) == ["memory_mb", "first_batch_s"], "a loader alone does nothing but wait"
    assert tables.cells(figures, ["data_wait", "memory_mb", "workers"]) == ["3.0 [2.5–9.9]", "99.5", "1,992", "–"]


def test_a_table_that_is_too_wide_goes_on_below() -> None:
    rows = [("program", "version", *(f"column-{i}" for i in range(9))), ("ours", "1.0", *"123456789")]
    lines = tabulated(rows, 2)
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line] == ["program", "ours"] * (lines.count("") + 1)
    assert " ".join(lines).split().count("column-8") == 1
    narrow = tabulated([row[:3] for row in rows], 2)
    assert narrow == ["  program  version  column-0", "  ours     1.0             1"]


def test_the_table_of_peers_fits() -> None:
    figures = Figures(images_per_s=[31877.0, 130015.0], version="2.4.0.dev2026", workers=16, memory_mb=12345.0,
                      first_batch_s=12.3, size_bytes=10**11)  # fmt: skip
    why = "its package cannot be installed: " + "no such wheel " * 9
    result = replace(
        RESULT, programs={peers.OURS: figures, "torchvision-tensor": figures},
        ratios={f"{peers.OURS} / torchvision-tensor": Ratio(22.03, 21.0, 23.5, 20.0, 24.0)},
        more={"skipped": {"ffcv": why}, "failed": {}},
    )  # fmt: skip
    lines = peers.table(result).splitlines()
    assert max(map(len, lines)) <= 80
    for cell in (*peers.COLUMNS, "22.03 [21.00–23.50]", "31,877–130,015]"):
        assert any(cell in line for line in lines), cell


def test_explain_shows_rates_as_the_others_do() -> None:
    assert explain_report.shown_rate is shown_rate


def test_what_cannot_be_written_is_told_before_the_measuring(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record.require_writable(None, tmp_path / "new" / "folder" / "x.json", tmp_path / "file")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"file/x.json: cannot be written. Give another path."):
        record.require_writable(tmp_path / "file" / "x.json")
