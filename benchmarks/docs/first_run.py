"""Run the README's two commands in a fresh clone, as a newcomer does, and record their output.

    python -m benchmarks.docs.first_run      # commit first: it clones HEAD; about ten minutes on two cores

Output: `first-run-2cpu.json` in benchmarks/results: the run's summary, and the lines that both commands printed.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from penstock.benchmarks import runs
from penstock.benchmarks.docs.results_page import RESULTS

FILE = RESULTS / "first-run-2cpu.json"
TRAIN, TESTS = "uv run train.py", "uv run --group tests pytest"


def demo_block() -> str:
    """Return the output of the two commands. The demo's part has the beginning, the last epoch and the end, without the
    hints at the end. The tests' part is the last line."""
    output = _content()["output"]
    lines = output[TRAIN]
    epochs = [number for number, line in enumerate(lines) if line.startswith("epoch ")]
    hints = next((number for number, line in enumerate(lines) if line.startswith("next")), len(lines))
    head, tail = lines[: epochs[0]], [line for line in lines[epochs[-1] : hints] if not line.startswith("step ")]
    return "\n".join(["```text", f"$ {TRAIN}", *head, "…", *tail, f"$ {TESTS}", output[TESTS][-1].strip("= "), "```"])


def _content() -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{FILE}: missing; make it with: python -m benchmarks.docs.first_run") from None
    return content


def main() -> None:
    repository = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "penstock"
        subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True)
        subprocess.run(["uv", "sync", "-q"], cwd=clone, check=True)  # its output is not recorded
        output = {TRAIN: _run(TRAIN, clone), TESTS: _run(TESTS, clone)}
        (run,) = (clone / "runs").glob("demo-*")
        content = runs.summary(run) | {"output": output}
    FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _run(command: str, folder: Path) -> list[str]:
    print(command, flush=True)
    done = subprocess.run(command.split(), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    if done.returncode:
        raise SystemExit("\n".join([*lines, f"{command} ended with status {done.returncode}"]))
    return [line for line in lines if line]


if __name__ == "__main__":
    main()
