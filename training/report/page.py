"""Runs → one self-contained HTML page: styles, curves and images inline, no scripts, no links.

Every text that comes from a run's files is escaped, because class names and file names cannot be trusted.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from penstock.training.ending import how_it_ended
from penstock.training.figures import duration, is_number, rate
from penstock.training.report.curves import colours, svgs, themed
from penstock.training.report.runs import Line, Run, column, short_names, top1s

MAX_BAD = 50
_SHORT_TABLE = 25  # rows that fit on a page of paper
_FIGURES = ("top1", "top5", "loss", "ema_top1", "ema_top5", "ema_loss")
_NAMES = {"top1": "top-1", "top5": "top-5", "ema_top1": "EMA top-1", "ema_top5": "EMA top-5", "ema_loss": "EMA loss"}

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def run_page(run: Run) -> str:
    """The page of one run."""
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in standing(run)),
        _tiles(run),
        _curves([run]),
        _section("Results", _results(run)),
        _section("Validation images with the largest loss", _worst(run)),
        '<div class="pair">',
        _section("Most confused classes", _confused(run)),
        _section("Classes with the lowest accuracy", _lowest(run)),
        "</div>",
        _folded(f"Quarantined samples: {len(run.bad)}", _bad(run)),
        _section("Settings that differ from the defaults", _changed_settings(run)),
        _folded("All settings", _settings(run), is_open=False),
        _folded(
            "Environment", _table(("name", "value"), [(key, _text(run.environment[key])) for key in run.environment])
        ),
    ]
    return _document(run.name, parts)


def comparison_page(runs: Sequence[Run]) -> str:
    """The page of several runs: their curves in the same charts, their results, and the settings that differ."""
    names = short_names(runs)
    legend = (
        f'<li><i style="background:{themed(colour)}"></i>{escape(name)}</li>'
        for name, colour in zip(names, colours(runs), strict=True)
    )
    rows = []
    for name, run in zip(names, runs, strict=True):
        figures = [_number(run.last.get(key)) for key in _FIGURES]
        best = _number(max(top1s(run.best), default=None))
        test = _number(run.test.get("ema_top1", run.test.get("top1")))
        rows.append(
            (name, *figures, best, test, rate(run.images_per_s), duration(run.end.get("seconds")), str(run.num_steps))
        )
    head = ("run", *(_NAMES.get(key, key) for key in _FIGURES), "best top-1", "test top-1", "images/s", "time", "steps")
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = [
        (key, *values)
        for key in keys
        if len(set(values := [_text(run.settings[key]) if key in run.settings else "–" for run in runs])) > 1
    ]
    title = f"{len(runs)} runs"
    parts = [
        f"<h1>{title}</h1>",
        f'<ul class="legend">{"".join(legend)}</ul>',
        _curves(runs),
        _section("Results", _table(*_known_columns(head, rows))),
        _section("Settings that differ", _table(("setting", *names), differing) or "<p>none</p>"),
    ]
    return _document(title, parts)


def _known_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns in which some run has a value."""
    known = [i for i in range(len(head)) if any(row[i] != "–" for row in rows)]
    return [head[i] for i in known], [[row[i] for i in known] for row in rows]


def standing(run: Run) -> list[str]:
    """Sentences about how far the run came, on which hardware and commit, and what went wrong."""
    lines = [f"{how_it_ended(run.end)}." if run.end else f"Not finished: {run.num_steps:,} steps done so far."]
    if "split_images" in run.last:
        lines.append(f"Validated on {_images(run.last)} images (--max-val-images). Use these figures for trials only.")
    facts = [run.environment.get(key) for key in ("gpu", "cpu")]
    hardware = next((str(fact) for fact in facts if fact), None)
    commit = run.environment.get("git_commit")
    changed = " with uncommitted changes" if run.environment.get("git_changed") else ""
    lines.append(" · ".join(filter(None, (hardware, f"commit {str(commit)[:12]}{changed}" if commit else None))))
    losses = column(run.steps, "loss")
    if not np.isfinite(losses).all():
        first = run.steps[int(np.argmin(np.isfinite(losses)))]["step"]
        num_bad = int(np.sum(~np.isfinite(losses)))
        lines.append(f"The loss is NaN or infinite at {num_bad:,} step{'s' * (num_bad > 1)}, first at step {first}.")
    return [line for line in lines if line]


def _tiles(run: Run) -> str:
    time = duration(run.end.get("seconds"))
    tiles = [
        ("validation top-1", _number(run.last.get("top1"))),
        ("validation top-1, EMA", _number(run.last.get("ema_top1"))),
        ("test top-1", _number(run.test.get("top1"))),
        ("test top-1, EMA", _number(run.test.get("ema_top1"))),
        ("images/s, mean", rate(run.images_per_s)),
        ("images/s, median", rate(run.median_images_per_s)),
        ("of the time waiting for data", _percent(run.end.get("data_wait"))),
        (f"total time, {'h:mm:ss' if time.count(':') > 1 else 'm:ss'}", time),
    ]
    cards = (f'<p class="card"><b>{value}</b><small>{name}</small></p>' for name, value in tiles if value != "–")
    return f'<div class="grid tiles">{"".join(cards)}</div>'


def _curves(runs: Sequence[Run]) -> str:
    cards = (f'<figure class="card">{svg}</figure>' for _, svg in svgs(runs))
    return f'<h2>Curves</h2><div class="grid">{"".join(cards)}</div>'


def _results(run: Run) -> str:
    last, best = run.last, run.best
    lines = [("last validation", last), ("best validation", best), ("test", run.test)]
    shown = [key for key in _FIGURES if any(key in line for _, line in lines)]
    head = ("", *(_NAMES.get(key, key) for key in shown), "images", "epochs done", "steps done")
    rows = [
        (
            name,
            *(_number(line.get(key)) for key in shown),
            _images(line),
            *(_text(line.get(k)) for k in ("epoch", "step")),
        )
        for name, line in lines
        if line
    ]
    return _table(head, rows)


def _images(line: Line) -> str:
    of = f" of {line['split_images']}" if "split_images" in line else ""
    return _text(line.get("num_images")) + of


def _worst(run: Run) -> str:
    figures = []
    for row in _rows(run.worst, "worst"):
        data = _picture(run.folder, row.get("file"))
        image = f'<img alt="" src="data:image/jpeg;base64,{data}">' if data else '<div class="none">no picture</div>'
        loss = "NaN or infinite" if row.get("loss") is None else _number(row["loss"], 2)
        caption = (
            f"<b>{escape(_text(row.get('label_name')))}</b><br>predicted {escape(_text(row.get('prediction_name')))} "
            f"({_percent(row.get('probability'))})<br>loss {loss}<br>{escape(_text(row.get('source')))}"
        )
        figures.append(f'<figure class="card">{image}<figcaption>{caption}</figcaption></figure>')
    return f'<div class="grid images">{"".join(figures)}</div>' if figures else ""


def _picture(folder: Path, file: object) -> str:
    """Return the file as base64, or "" if it is missing or outside the run's directory."""
    path = (folder / str(file)).resolve()
    if not file or folder.resolve() not in path.parents or not path.is_file():
        return ""
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _confused(run: Run) -> str:
    rows = [
        (_text(r.get("label_name")), _text(r.get("prediction_name")), _text(r.get("count")), _percent(r.get("share")))
        for r in _rows(run.worst, "confused")
    ]
    return _table(("true class", "predicted class", "images", "share of the class"), rows)


def _lowest(run: Run) -> str:
    rows = [
        (_text(r.get("label_name")), _number(r.get("accuracy")), _text(r.get("num_images")))
        for r in _rows(run.worst, "lowest")
    ]
    return _table(("class", "top-1", "images"), rows)


def _bad(run: Run) -> str:
    keys = ("epoch", "sample_id", "where", "reason")
    rows = [tuple(_text(line.get(key)) for key in keys) for line in run.bad[:MAX_BAD]]
    more = f"<p>{len(run.bad) - MAX_BAD:,} more are in quarantine.jsonl.</p>" if len(run.bad) > MAX_BAD else ""
    return _table(("epoch", "sample", "where", "reason"), rows) + more


def _settings(run: Run) -> str:
    """All settings. If the run has `defaults.toml`: with the defaults, and those that differ marked."""
    if not run.defaults:
        return _table(("setting", "value"), [(key, _text(value)) for key, value in run.settings.items()])
    rows = _with_defaults(run)
    return _table(("setting", "value", "default"), rows, [i for i, row in enumerate(rows) if row[1] != row[2]])


def _changed_settings(run: Run) -> str:
    rows = [row for row in _with_defaults(run) if row[1] != row[2]] if run.defaults else []
    return _table(("changed setting", "value", "default"), rows)


def _with_defaults(run: Run) -> list[tuple[str, str, str]]:
    return [
        (key, _text(value) or "(empty)", _text(run.defaults.get(key, "none")) or "(empty)")
        for key, value in run.settings.items()
    ]


def _rows(table: dict[str, object], name: str) -> list[Line]:
    rows = table.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], changed: Iterable[int] = ()) -> str:
    """Return a table of plain text, which is escaped here, or "" without rows.

    A column of numbers alone is aligned to the right. A short table stays on one page when it is printed.
    """
    if not rows:
        return ""
    changed = set(changed)
    classes = [" class=n" if _are_numbers(column) else "" for column in zip(*rows, strict=True)]
    heads = "".join(f'<th scope="col"{name}>{escape(text)}</th>' for name, text in zip(classes, head, strict=True))
    body = []
    for i, row in enumerate(rows):
        cells = (f"<td{name}>{_breakable(text)}</td>" for name, text in zip(classes, row, strict=True))
        body.append(f"<tr{' class=changed' if i in changed else ''}>{''.join(cells)}</tr>")
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll{" short" if len(rows) <= _SHORT_TABLE else ""}">{table}</div>'


def _section(title: str, content: str) -> str:
    return f"<div><h2>{escape(title)}</h2>{content}</div>" if content else ""


def _folded(title: str, content: str, *, is_open: bool = True) -> str:
    opened = " open" if is_open else ""
    return f"<details{opened}><summary><h2>{escape(title)}</h2></summary>{content}</details>" if content else ""


def _document(title: str, parts: Iterable[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"{chr(10).join(filter(None, parts))}\n</main></body></html>\n"
    )


def _breakable(text: str) -> str:
    """Escape text, and let a narrow screen break `schedule.warmup_epochs` or a path between its words."""
    return re.sub(r"(?<=[a-z])([._/])(?=[a-z])", r"\1<wbr>", escape(text))


def _are_numbers(texts: Iterable[str]) -> bool:
    """Whether all known values are numbers."""
    known = [text for text in texts if text != "–"]
    return bool(known) and all(map(_is_number, known))


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace("%", "").replace(".", "", 1).replace("-", "", 1).isdigit()


def _text(value: object) -> str:
    """As a settings file has it: `true`, `false`; "–" for a missing value."""
    if isinstance(value, list):
        return " ".join(_text(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value is None else str(value)


def _number(value: object, digits: int = 4) -> str:
    return f"{value:,.{digits}f}" if is_number(value) else "–"


def _percent(value: object) -> str:
    return f"{value:.1%}" if is_number(value) else "–"
