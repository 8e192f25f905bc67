"""Shared by the tests of `bench.py explain`."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from penstock.benchmarks.explain import command

TINY = ("--set", "model.name=cifar_resnet8", "--set", "train.precision=fp32")


def explain(data: Path, *more: str, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """Run `explain`. Returns its part of the result, and the printed output."""
    file = tmp_path / "result.json"
    small = ["--image-size", "32", "--device", "cpu", "--seconds", "0.1", "--repeats", "1", "--no-machine-config"]
    arguments = ["--data", str(data), "--recipe", "demo", *small, *more, "--json", str(file)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text())["explain"], result.output
