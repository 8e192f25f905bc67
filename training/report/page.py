"""Runs → one HTML page that needs nothing else: styles and curves inline, pictures as data, no scripts.

Everything that comes out of a run's files is escaped: class names and file names are not to be trusted.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from penstock.training.ending import how_it_ended
from penstock.training.figures import duration, is_number, rate
from penstock.training.report.curves import colours, svgs, themed
from penstock.training.report.runs import Line, Run, column, short_names, top1s

MAX_BAD = 50
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
        _section("Largest losses of the last validation", _worst(run)),
        '<div class="pair">',
        _section("Most confused classes", _confused(run)),
        _section("Classes with the lowest accuracy", _lowest(run)),
        "</div>",
        _folded(f"Quarantined samples: {len(run.bad)}", _bad(run)),
        _folded("Settings", _settings(run)),
        _folded(
            "Environment", _table(("what", "value"), [(key, _text(value)) for key, value in run.environment.items()])
        ),
    ]
    return _document(run.name, parts)


def comparison_page(runs: Sequence[Run]) -> str:
    """Several runs: their curves in one, their results, and the settings in which they differ."""
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
    head = ("run", *(_NAMES.get(key, key) for key in _FIGURES), "best top-1", "test top-1", "images/s", "time", "step")
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
        _section("Results", _table(head, rows)),
        _section("Settings that differ", _table(("setting", *names), differing) or "<p>none</p>"),
    ]
    return _document(title, parts)


def standing(run: Run) -> list[str]:
    """How far the run came, on what, and what is wrong with it, in sentences."""
    lines = [f"{how_it_ended(run.end)}." if run.end else f"Not finished: {run.num_steps} steps are done."]
    if "split_images" in run.last:
        lines.append(f"Validated on {_images(run.last)} images (--max-val-images). Use these figures only for trials.")
    facts = [run.environment.get(key) for key in ("gpu", "cpu")]
    hardware = next((str(fact) for fact in facts if fact), None)
    commit = run.environment.get("git_commit")
    changed = ", changed" if run.environment.get("git_changed") else ""
    lines.append(" · ".join(filter(None, (hardware, f"commit {str(commit)[:12]}{changed}" if commit else None))))
    losses = column(run.steps, "loss")
    if not np.isfinite(losses).all():
        first = run.steps[int(np.argmin(np.isfinite(losses)))]["step"]
        lines.append(f"{np.sum(~np.isfinite(losses))} steps have a NaN or infinite loss, the first is step {first}.")
    return [line for line in lines if line]


def _tiles(run: Run) -> str:
    tiles = [
        ("top-1", _number(run.last.get("top1"))),
        ("top-1, EMA", _number(run.last.get("ema_top1"))),
        ("test top-1", _number(run.test.get("top1"))),
        ("test top-1, EMA", _number(run.test.get("ema_top1"))),
        ("images/s", rate(run.images_per_s)),
        ("images/s, median", rate(run.median_images_per_s)),
        ("waiting for data", _percent(run.end.get("data_wait"))),
        ("time", duration(run.end.get("seconds"))),
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
    head = ("", *(_NAMES.get(key, key) for key in shown), "images", "epochs done", "step")
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
            f"<b>{escape(_text(row.get('label_name')))}</b><br>predicted as "
            f"{escape(_text(row.get('prediction_name')))}, "
            f"{_percent(row.get('probability'))}<br>loss {loss}<br>{escape(_text(row.get('source')))}"
        )
        figures.append(f'<figure class="card">{image}<figcaption>{caption}</figcaption></figure>')
    return f'<div class="grid images">{"".join(figures)}</div>' if figures else ""


def _picture(folder: Path, file: object) -> str:
    """The file as base64; "" where there is none inside the run's directory."""
    path = (folder / str(file)).resolve()
    if not file or folder.resolve() not in path.parents or not path.is_file():
        return ""
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _confused(run: Run) -> str:
    rows = [
        (_text(r.get("label_name")), _text(r.get("prediction_name")), _text(r.get("count")), _percent(r.get("share")))
        for r in _rows(run.worst, "confused")
    ]
    return _table(("class", "predicted as", "images", "share of the class"), rows)


def _lowest(run: Run) -> str:
    rows = [
        (_text(r.get("label_name")), _number(r.get("accuracy")), _text(r.get("num_images")))
        for r in _rows(run.worst, "lowest")
    ]
    return _table(("class", "top-1", "images"), rows)


def _bad(run: Run) -> str:
    keys = ("epoch", "sample_id", "where", "reason")
    rows = [tuple(_text(line.get(key)) for key in keys) for line in run.bad[:MAX_BAD]]
    more = f"<p>and {len(run.bad) - MAX_BAD} more in quarantine.jsonl</p>" if len(run.bad) > MAX_BAD else ""
    return _table(("epoch", "sample", "where", "reason"), rows) + more


def _settings(run: Run) -> str:
    """With `defaults.toml` beside it, what differs from the defaults is marked, and those are shown."""
    rows, changed = [], set()
    for i, (key, value) in enumerate(run.settings.items()):
        default = _text(run.defaults.get(key, "none")) if run.defaults else ""
        if run.defaults and default != _text(value):
            changed.add(i)
        rows.append((key, _text(value), default) if run.defaults else (key, _text(value)))
    head = ("setting", "value", "default") if run.defaults else ("setting", "value")
    return _table(head, rows, changed)


def _rows(table: dict[str, object], name: str) -> list[Line]:
    rows = table.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], changed: Iterable[int] = ()) -> str:
    """A table of plain text, escaped here; "" without rows."""
    if not rows:
        return ""
    changed = set(changed)
    heads = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = []
    for i, row in enumerate(rows):
        cells = (f"<td{' class=n' if _is_number(text) else ''}>{escape(text)}</td>" for text in row)
        body.append(f"<tr{' class=changed' if i in changed else ''}>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _section(title: str, content: str) -> str:
    return f"<div><h2>{escape(title)}</h2>{content}</div>" if content else ""


def _folded(title: str, content: str) -> str:
    return f"<details open><summary>{escape(title)}</summary>{content}</details>" if content else ""


def _document(title: str, parts: Iterable[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{chr(10).join(filter(None, parts))}\n"
        "</body></html>\n"
    )


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace("%", "").replace(".", "", 1).replace("-", "", 1).isdigit()


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_text(item) for item in value)
    return "–" if value is None else str(value)


def _number(value: object, digits: int = 4) -> str:
    return f"{value:,.{digits}f}" if is_number(value) else "–"


def _percent(value: object) -> str:
    return f"{value:.1%}" if is_number(value) else "–"
