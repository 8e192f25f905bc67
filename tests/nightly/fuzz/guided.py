"""Coverage-guided fuzzing of one target with atheris: libFuzzer keeps the inputs that reach new lines of the program.

    uv run python -m tests.nightly.fuzz.guided "sample table" -max_total_time=600 -seed=1

Further arguments go to libFuzzer: a folder keeps the inputs between runs, a file name runs only that input. The fuzzer
starts from the target's valid file, and changes bytes or damages it like `python -m tests.nightly.fuzz`. It stops at
the first violation and writes its input to `crash-…`.
"""

import os
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris  # type: ignore[import-not-found, unused-ignore]

with atheris.instrument_imports(include=["shard_tools", "pipeline", "training", "commands", "recipes", "train"]):
    from tests.nightly.fuzz.targets import TARGETS, run_case


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(
            f"usage: python -m tests.nightly.fuzz.guided TARGET [libFuzzer's options]; one of {', '.join(TARGETS)}"
        )
    target = TARGETS[sys.argv.pop(1)]
    valid = target.valid()[target.file]
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

    def run(data: bytes) -> None:
        run_case(target, data, Path(folder, "case"))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if not data or rng.random() < 0.05:
            data = valid
        try:
            changed = target.damage(rng, data) if rng.random() < 0.5 else b""
        except Exception:  # what `damage` is given is no longer valid
            changed = b""
        return (changed or bytes(atheris.Mutate(data, max_size)))[:max_size]

    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        options = [f"-max_len={4 * len(valid) + 1000}", "-handle_alrm=0", "-rss_limit_mb=0", "-timeout=0"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], run, custom_mutator=mutate)
        run(valid)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
