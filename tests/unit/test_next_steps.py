"""The demo's next steps work: the commands, options, recipes and pages that it names exist."""

import re
from pathlib import Path

import pytest

from penstock.recipes import recipe_file
from penstock.shard_tools.__main__ import main
from penstock.training.results import next_steps

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("uv", [True, False])
def test_what_the_demo_names_is_there(uv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV", "uv") if uv else monkeypatch.delenv("UV", raising=False)
    lines = next_steps(Path("runs/a/report.html"))
    assert len(lines) == 3
    text = "\n".join(lines)
    assert "runs/a/report.html" in text
    assert text.count("uv run python -m shard_tools") == (2 if uv else 0)
    assert text.count("uv run train.py" if uv else "python train.py") == 1
    (page,) = re.findall(r"docs/\S+?\.md", text)
    assert (ROOT / page).is_file()
    for name in re.findall(r"--recipe ([\w-]+)", text):
        assert recipe_file(name).is_file()
    options = {option for parameter in main.commands["pack"].params for option in parameter.opts}
    assert set(re.findall(r"--(?:split)", text)) <= options
    assert max(map(len, lines)) <= 125
