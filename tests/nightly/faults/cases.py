"""The faults by name: each injects one, waits for the end within a bounded time, and checks what must hold after it.

A case gets a `Bench` and returns an `Outcome`. A failed check is an AssertionError.
"""

import os
import resource
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from penstock.commands.audit import audit
from penstock.shards.format import ShardSet
from tests.nightly.faults.bench import (
    END_S,
    LAST_STEP,
    STEPS_PER_EPOCH,
    Bench,
    differences,
    lines,
    steps,
    steps_again,
    until,
    wrong_samples,
)  # fmt: skip
from tests.nightly.faults.inject import ALWAYS, Fault
from tests.nightly.faults.launch import Launched, free_port

GRACE_S = 30.0  # between torchrun's SIGTERM and its SIGKILL, as with most schedulers
TORCHRUN_FAILED = 1  # its own exit code, for a rank's failure and for a signal
TRY_AGAIN = 75
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # or an agent that comes later waits in vain (docs/clusters.md)


class Outcome(NamedTuple):
    """lost_steps: made again, or in flight. wrong_samples: lost, repeated or out of order. recovery_s: from the fault
    to the end of the first step after it; None where the run was to end."""

    lost_steps: int
    wrong_samples: int
    recovery_s: float | None = None


Case = Callable[[Bench], Outcome]


def end_as_if_undisturbed(bench: Bench, round_dir: Path, run: Launched, *, same_ranks: bool = True) -> Outcome:
    """Check that the run ends well, with the undisturbed run's samples in each step and, on as many ranks, weights."""
    assert run.wait(END_S) == 0, run.output
    run_dir, whole = round_dir / "run", bench.whole()
    assert wrong_samples(run_dir, whole) == 0, run.output
    assert not same_ranks or differences(run_dir, whole) == [], run.output
    evals = [line["num_images"] for line in lines(run_dir, "eval")]
    assert set(evals) == {19}, evals
    fault, recovered = round_dir / "fault-0", round_dir / "recovered"
    assert fault.exists(), f"the fault did not come:\n{run.output}"
    took_s = recovered.stat().st_mtime - fault.stat().st_mtime if recovered.exists() else None
    return Outcome(steps_again(run_dir), 0, took_s)


def end_as_if_alone(bench: Bench, round_dir: Path, run: Launched) -> Outcome:
    """The same check for a run without torchrun."""
    assert run.wait(END_S) == 0, run.output
    run_dir, whole = round_dir / "run", bench.whole(0)
    assert differences(run_dir, whole) == []
    return Outcome(steps_again(run_dir), wrong_samples(run_dir, whole))


def says(run: Launched, *texts: str) -> None:
    """A line of the output has all the texts."""
    assert any(all(text in line for text in texts) for line in run.output.splitlines()), f"{texts} in:\n{run.output}"


def no_traceback(run: Launched) -> None:
    """Check that our processes print no traceback. torchrun prints one of its own."""
    traces = run.output.split("Traceback (most recent call last):")[1:]
    ours = [t for t in traces if "train.py" in t.partition("Error")[0] and "distributed/run.py" not in t]
    assert not ours, run.output


# SIGKILL


def killed(bench: Bench, at: str, step: int | tuple[int, int], rank: int | None = None) -> Outcome:
    chosen = step if isinstance(step, int) else bench.rng.randint(*step)
    fault = Fault(at, "SIGKILL", bench.rng.randrange(2) if rank is None else rank, chosen)
    round_dir = bench.new("killed")
    outcome = end_as_if_undisturbed(bench, round_dir, bench.start(round_dir, fault, restarts=3))
    assert outcome.lost_steps <= 4, outcome  # two intervals between checkpoints, where one was being written
    return outcome


def killed_at_any_time(bench: Bench) -> Outcome:
    """Kill a rank from outside, at an arbitrary moment."""
    round_dir, after = bench.new("killed"), bench.rng.randrange(LAST_STEP)
    slowly = Fault("step", "sleep", ALWAYS, seconds=0.1)
    run = bench.start(round_dir, slowly, restarts=3)
    until(lambda: len(run.ranks) == 2 and len(steps(round_dir / "run")) >= after, run)
    (round_dir / "fault-0").touch()
    os.kill(bench.rng.choice(run.ranks), signal.SIGKILL)
    return end_as_if_undisturbed(bench, round_dir, run)


def launcher_killed(bench: Bench) -> Outcome:
    """Kill the node's torchrun and ranks together, as in a power cut, and run the same command again."""
    round_dir = bench.new("power")
    fault = Fault("step", "launcher SIGKILL", 0, bench.rng.randint(1, LAST_STEP))
    first = bench.start(round_dir, fault)
    first.wait(END_S)
    return end_as_if_undisturbed(bench, round_dir, bench.start(round_dir, fault, log="again"))


# SIGTERM and SIGINT


def signalled(bench: Bench, name: str, to: str, at: str, step: int, **settings: object) -> Outcome:
    """Send a signal to torchrun, to one of its ranks, or to python alone; run the same command again if it ended."""
    round_dir = bench.new(name)
    ranks = 0 if to == "python" else 2
    rank = 0 if to == "python" or at == "saving" else 1  # rank 0 writes the checkpoints
    fault = Fault(at, f"launcher {name}" if to == "torchrun" else name, rank, step)
    run = bench.start(round_dir, fault, ranks=ranks, restarts=int(to == "rank"), settings=settings)
    until(lambda: (round_dir / "fault-0").exists() or not run.running, run)
    code = run.wait(GRACE_S if to != "rank" else END_S)
    no_traceback(run)
    if to == "rank":  # torchrun takes it for a failure, and restarts
        assert code == 0, run.output
    else:
        assert code == (128 + signal.Signals[name] if to == "python" else TORCHRUN_FAILED), run.output
        says(run, name if to == "python" else "SIG", "stopped; the same command")
    before = len(set(steps(round_dir / "run")))
    run = run if to == "rank" else bench.start(round_dir, fault, ranks=ranks, log="again", settings=settings)
    whole = bench.whole(ranks, **settings)
    assert run.wait(END_S) == 0, run.output
    assert wrong_samples(round_dir / "run", whole) == 0
    assert differences(round_dir / "run", whole) == []
    lost = steps_again(round_dir / "run")
    assert lost <= 1, (lost, before, run.output)
    return Outcome(lost, 0)


def signalled_in_the_last_validation(bench: Bench) -> Outcome:
    """Of --max-steps, in the middle of an epoch and between two checkpoints: the steps before it are not lost."""
    round_dir = bench.new("last-validation")
    more, settings = ("--max-steps=5",), {"train.checkpoint_every": 0}
    fault = Fault("scoring", "SIGTERM", 0, 5)
    run = bench.start(round_dir, fault, ranks=0, more=more, settings=settings)
    assert run.wait(END_S) == 128 + signal.SIGTERM, run.output
    again = bench.start(round_dir, fault, ranks=0, log="again")
    outcome = end_as_if_alone(bench, round_dir, again)
    says(again, "resuming from", "step 5")
    return outcome


def slow_disk_and_little_time(bench: Bench) -> Outcome:
    """--max-minutes with slow checkpoints on one rank: all ranks agree on the schedule and on the end."""
    round_dir = bench.new("minutes")
    slowly = Fault("saving", "sleep", ALWAYS, seconds=0.7)
    settings = {"train.epochs": 1000, "train.timeout_s": 20, "train.checkpoint_every": 5, "train.keep_checkpoints": 1}
    run = bench.start(round_dir, slowly, more=("--max-minutes=0.4",), settings=settings)
    assert run.wait(END_S) == 0, run.output
    assert not [epoch for epoch in audit(round_dir / "run") if epoch.deviation]
    rates = [line["lr"] for line in lines(round_dir / "run", "step")]
    assert rates[-1] < 0.5 * max(rates), "the schedule was to come to its end"
    return Outcome(0, 0)


# Other numbers of ranks


def world_sizes(bench: Bench) -> Outcome:
    """2 → 1 → 3 → 2 ranks; each run except the last ends by SIGTERM."""
    round_dir = bench.new("worlds")
    for i, (ranks, step) in enumerate(((2, 3), (1, 6), (3, 10))):
        run = bench.start(
            round_dir, *(Fault("step", "launcher SIGTERM", 0, s) for s in (3, 6, 10)), ranks=ranks, log=f"{i}"
        )
        assert run.wait(END_S) == TORCHRUN_FAILED, run.output
        assert (round_dir / f"fault-{i}").exists(), (step, run.output)
    return end_as_if_undisturbed(bench, round_dir, bench.start(round_dir), same_ranks=False)


def elastic(bench: Bench) -> Outcome:
    """Three agents meet with `--nnodes=1:3`: two, then a third comes, then one is lost with its rank.

    The first hosts the rendezvous and must stay alive, like the endpoint's node in docs/clusters.md. On one shared
    machine any of the agents could become the host.
    """
    round_dir, port = bench.new("elastic"), free_port()
    waits = "keep_alive_interval=1,keep_alive_max_attempt=8,last_call_timeout=2,join_timeout=60"
    slowly = Fault("step", "sleep", ALWAYS, seconds=1.5)

    def agent(name: str) -> Launched:
        options = (
            "--nnodes=1:3", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=elastic",
            f"--rdzv-conf={waits},is_host={int(name == 'first')}", "--local-addr=127.0.0.1",
        )  # fmt: skip
        return bench.start(round_dir, slowly, ranks=1, restarts=5, log=name, torchrun=options, env=OWN_STORE)

    def made() -> int:
        return len(set(steps(round_dir / "run")))

    first = agent("first")
    agents = [first, agent("second")]
    try:
        until(lambda: made() >= 2, first)
        agents.append(agent("third"))
        until(lambda: "3 × " in first.output, first)
        then = made()
        until(lambda: made() >= then + 1, first)
        agents[1].end()
        assert first.wait(END_S) == 0, first.output
        (round_dir / "fault-0").touch()
    finally:
        for launched in agents:
            launched.end()
    whole = bench.whole()
    assert wrong_samples(round_dir / "run", whole) == 0, first.output
    after = first.output.rpartition("3 × ")[2]
    assert "2 × " in after or "1 × " in after, first.output  # it went on without the one that was lost
    return Outcome(steps_again(round_dir / "run"), 0)


# Disks


def small_disk(round_dir: Path) -> Path:
    """A file system of 8 MiB, mounted at the run directory. Raises PermissionError if that is not allowed."""
    (round_dir / "run").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(round_dir / "run")]
    if subprocess.run(command, capture_output=True).returncode:
        raise PermissionError("mounting is not permitted here")
    return round_dir / "run"


def unmount(path: Path) -> None:
    while subprocess.run(["umount", "-l", path], capture_output=True).returncode == 0:
        pass


def disk_full(bench: Bench) -> Outcome:
    """The run reports it and ends. Its last checkpoint is complete, and the run resumes once there is room."""
    round_dir = bench.new("full")
    run_dir = small_disk(round_dir)
    try:
        run = bench.start(round_dir, Fault("step", "fill", 0, 5, on=str(run_dir)))
        assert run.wait(END_S) == TORCHRUN_FAILED, run.output
        says(run, "No space left on device", str(run_dir))
        no_traceback(run)
        (run_dir / "filler").unlink()
        return end_as_if_undisturbed(bench, round_dir, bench.start(round_dir, log="again"))
    finally:
        unmount(run_dir)


def checkpoints_unwritable(bench: Bench, how: str) -> Outcome:
    """Only checkpoints cannot be written: the run reports it, continues, and ends with exit code 1."""
    round_dir = bench.new(how)
    folder = round_dir / "run" / "checkpoints"
    limits = {resource.RLIMIT_FSIZE: 700_000} if how == "file size" else {}
    faults = [Fault("step", "remount read-only", 0, 5, on=str(folder))] if how == "read-only" else []
    try:
        run = bench.start(round_dir, *faults, ranks=0, limits=limits)
        code = run.wait(END_S)
    finally:
        unmount(folder) if faults else None
    assert code == 1, run.output
    says(run, "cannot write this checkpoint", "Read-only" if faults else "File too large")
    no_traceback(run)
    assert len(steps(round_dir / "run")) == LAST_STEP + 1, "the run continues"
    return end_as_if_alone(bench, round_dir, bench.start(round_dir, ranks=0, log="again"))


def log_read_only(bench: Bench) -> Outcome:
    """As when the kernel makes a file system read-only after an error, while metrics.jsonl is open: the run says so and
    ends; the same command goes on."""
    round_dir = bench.new("log")
    run = bench.start(round_dir, Fault("logging", "EROFS", 0, 5))
    assert run.wait(END_S) == TORCHRUN_FAILED, run.output
    says(run, "Error: ", str(round_dir / "run"), "Read-only file system")
    no_traceback(run)
    return end_as_if_undisturbed(bench, round_dir, bench.start(round_dir, log="again"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "foreign": lambda data: b"PK\x03\x04" + bytes(1000),
}


def damaged_checkpoint(bench: Bench, how: str) -> Outcome:
    """The run falls back to the previous checkpoint and prints a line."""
    round_dir = bench.new(how)
    run = bench.start(round_dir, ranks=0, more=("--max-steps=6",))
    assert run.wait(END_S) == 0, run.output
    newest = round_dir / "run/checkpoints/last.pt"
    newest.write_bytes(DAMAGE[how](newest.read_bytes()))  # in place: the other names of this file with it
    again = bench.start(round_dir, ranks=0, log="again")
    outcome = end_as_if_alone(bench, round_dir, again)
    says(again, "last.pt: not a readable checkpoint")
    says(again, "resuming from")
    return outcome


def refused_checkpoint(bench: Bench, of: str) -> Outcome:
    """The difference is shown in one line. The checkpoint stays, and its own run can resume."""
    round_dir = bench.new(f"other-{of}")
    run = bench.start(round_dir, ranks=0, more=("--max-steps=6",))
    assert run.wait(END_S) == 0, run.output
    settings = {"recipe": {"optimizer.lr": 0.7}, "model": {"model.name": "cifar_resnet14"}}.get(of)
    data = bench.data_of_another_seed() if of == "dataset" else None
    config = (round_dir / "run/config.toml").read_bytes()
    other = bench.start(round_dir, ranks=0, log="other", settings=settings, data=data)
    assert other.wait(END_S) == 1, other.output
    assert (round_dir / "run/config.toml").read_bytes() == config
    differs = {"recipe": "optimizer.lr", "model": "model.name", "dataset": "but other shards"}[of]
    says(other, "last.pt: made ", "another dataset" if of == "dataset" else "other settings", differs, "--resume never")
    no_traceback(other)
    return end_as_if_alone(bench, round_dir, bench.start(round_dir, ranks=0, log="again"))


# Shards


def shard_fault(bench: Bench, how: str) -> Outcome:
    """The fault is found when the run starts, or at an unreadable sample: a line names the shard, and nothing hangs."""
    round_dir = bench.new(how)
    data = bench.data_copy(round_dir)
    first, second = sorted(data.glob("train-*.tar"))[:2]
    match how:
        case "missing":
            first.unlink()
        case "truncated":
            os.truncate(first, 1 << 16)
        case "swapped":
            content = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(content)
        case "other bytes":
            rng = np.random.default_rng(0)
            first.write_bytes(rng.bytes(first.stat().st_size))
    run = bench.start(round_dir, data=data)
    assert run.wait(END_S) == TORCHRUN_FAILED, run.output
    says(run, "Error: ", str(data), "verify" if how != "missing" else first.name)
    no_traceback(run)
    return Outcome(0, 0)


def shard_cut_midway(bench: Bench) -> Outcome:
    """The kernel ends a process that reads a mapped file's missing end: one line that names the shard."""
    round_dir = bench.new("cut")
    data = bench.data_copy(round_dir)
    shards = sorted(data.glob("train-*.tar"))
    run = bench.start(round_dir, *(Fault("step", "truncate", 0, 3, on=str(shard)) for shard in shards), data=data)
    assert run.wait(END_S) == TORCHRUN_FAILED, run.output
    says(run, "Error: ", str(data), "was cut from", "while it was being read")
    return Outcome(0, 0)


def corrupt_images(bench: Bench) -> Outcome:
    """1 % of the images, at least two, are quarantined with one line each, also in a run that is killed in between."""
    round_dir = bench.new("corrupt")
    data = bench.data_copy(round_dir)
    split = ShardSet.open(data).split("train")
    for sample_id in (5, 50):
        row = split.samples[sample_id]
        with open(split.shard_path(int(row["shard"])), "r+b") as file:
            file.seek(int(row["offset"]) + int(row["size"]) // 3)
            file.write(bytes(int(row["size"]) // 2))
    settings = {"data.max_bad_fraction": 0.05}
    quiet_dir = bench.new("quiet")
    quiet = bench.start(quiet_dir, data=data, settings=settings)
    assert quiet.wait(END_S) == 0, quiet.output
    assert quiet.output.count("quarantined: ") == lines(quiet_dir / "run", "epoch")[-1]["bad_samples"]
    fault = Fault("step", "SIGKILL", bench.rng.randrange(2), bench.rng.randint(1, LAST_STEP))
    run = bench.start(round_dir, fault, data=data, settings=settings, restarts=3)
    assert run.wait(END_S) == 0, run.output
    assert differences(round_dir / "run", quiet_dir / "run") == []
    return Outcome(steps_again(round_dir / "run"), wrong_samples(round_dir / "run", quiet_dir / "run"))


def slow_reads(bench: Bench) -> Outcome:
    """Each batch takes far longer than a step: the run is slower but otherwise the same. The watchdog is quiet."""
    round_dir = bench.new("slow")
    run = bench.start(round_dir, Fault("reading", "sleep", ALWAYS, seconds=0.3), settings={"train.timeout_s": 10})
    assert run.wait(END_S) == 0, run.output
    assert differences(round_dir / "run", bench.whole()) == []
    assert lines(round_dir / "run", "end")[-1]["data_wait"] > 0.3
    return Outcome(0, wrong_samples(round_dir / "run", bench.whole()))


# Ranks that hang


def hangs(bench: Bench, at: str, do: str, expected: str) -> Outcome:
    """The run ends in bounded time, names rank 1 and its stage, and resumes after torchrun's restart."""
    round_dir, timeout_s = bench.new("hangs"), 6
    run = bench.start(round_dir, Fault(at, do, 1, 5 if at != "validation" else STEPS_PER_EPOCH), restarts=2,
                      settings={"train.timeout_s": timeout_s})  # fmt: skip
    outcome = end_as_if_undisturbed(bench, round_dir, run)
    says(run, "rank 1", expected)
    assert outcome.recovery_s is not None
    assert outcome.recovery_s < timeout_s * 1.5 + GRACE_S + 30, outcome  # noticed, killed, restarted
    return outcome


# What a step can do


def not_finite(bench: Bench, how: str) -> Outcome:
    """The run saves the previous state and the samples, and prints a line. Nothing hangs. `replay` finds the fault."""
    round_dir, step = bench.new("nan"), 5
    faults = [Fault("step", "nan", ALWAYS, step)] if how == "nan" else []
    settings = {} if how == "nan" else {"optimizer.lr": 1e30}
    run = bench.start(round_dir, *faults, settings=settings)
    assert run.wait(END_S) == TORCHRUN_FAILED, run.output
    what = "the loss is nan" if how == "nan" else "the weights are NaN or infinite"
    says(run, "Error: step", what, "samples", "train.py replay")
    no_traceback(run)
    assert len(list((round_dir / "run").glob("failed-step-*.pt"))) == 1
    assert steps(round_dir / "run") == list(range(len(steps(round_dir / "run"))))
    return Outcome(0, 0)


def weights_not_finite(bench: Bench) -> Outcome:
    """After a step with a good loss: no checkpoint has them, and the same command resumes from the one before."""
    round_dir = bench.new("weights")
    run = bench.start(round_dir, Fault("stepped", "nan", 0, 5), ranks=0)
    assert run.wait(END_S) == 1, run.output
    says(run, "Error: step 5", "the weights are NaN or infinite", "train.py replay")
    no_traceback(run)
    return end_as_if_alone(bench, round_dir, bench.start(round_dir, ranks=0, log="again"))


def out_of_memory_in_validation(bench: Bench) -> Outcome:
    round_dir = bench.new("memory")
    run = bench.start(round_dir, Fault("validation", "memory", 1, STEPS_PER_EPOCH))
    assert run.wait(END_S) == TORCHRUN_FAILED, run.output
    says(run, f"Error: step {STEPS_PER_EPOCH}, validation: out of memory", "lower train.global_batch_size")
    no_traceback(run)
    return end_as_if_undisturbed(bench, round_dir, bench.start(round_dir, log="again"))


def out_of_memory(bench: Bench, rank: int) -> Outcome:
    round_dir = bench.new("memory")
    run = bench.start(round_dir, Fault("step", "memory", rank, 5))
    assert run.wait(END_S) == TORCHRUN_FAILED, run.output
    says(run, "Error: step 5", "out of memory", "lower train.global_batch_size", "samples", "train.py replay")
    no_traceback(run)
    assert len(list((round_dir / "run").glob("failed-step-00000005*.pt"))) == 1
    return Outcome(0, 0)


KILLED = {
    "SIGKILL at any time": killed_at_any_time,
    "SIGKILL in a random step": partial(killed, at="step", step=(1, LAST_STEP - 1)),
    "SIGKILL after a random step": partial(killed, at="stepped", step=(1, LAST_STEP - 1)),
    "SIGKILL while starting": partial(killed, at="start", step=0),
    "SIGKILL in the first step": partial(killed, at="step", step=0),
    "SIGKILL in the last step": partial(killed, at="stepped", step=LAST_STEP),
    "SIGKILL in validation": partial(killed, at="validation", step=STEPS_PER_EPOCH),
    "SIGKILL in the last validation": partial(killed, at="validation", step=LAST_STEP + 1),
    "SIGKILL writing a checkpoint": partial(killed, at="saving", step=(3, LAST_STEP), rank=0),
    "SIGKILL before last.pt is renamed": partial(killed, at="linking", step=(3, LAST_STEP), rank=0),
    "SIGKILL of torchrun and ranks": launcher_killed,
}
PLACES = {
    "starting": ("start", ALWAYS),
    "training": ("step", 5),
    "writing a checkpoint": ("saving", 5),
    "validation": ("validation", STEPS_PER_EPOCH),
}
SIGNALLED = {
    f"{name} to {to}, {place}": partial(signalled, name=name, to=to, at=at, step=step)
    for name in ("SIGTERM", "SIGINT")
    for to in ("torchrun", "rank", "python")
    for place, (at, step) in PLACES.items()
}
COMPILED = {
    f"{name} to {to}, compiling": partial(signalled, name=name, to=to, at="compile", step=0, **{"model.compile": True})
    for name in ("SIGTERM", "SIGINT")
    for to in ("torchrun", "rank", "python")
}
CASES: dict[str, Case] = {
    **KILLED,
    **SIGNALLED,
    **COMPILED,
    "SIGTERM in the validation of --max-steps": signalled_in_the_last_validation,
    "--max-minutes, slow disk": slow_disk_and_little_time,
    "2 → 1 → 3 → 2 ranks": world_sizes,
    "elastic, --nnodes=1:3": elastic,
    "disk full": disk_full,
    "checkpoints read-only": partial(checkpoints_unwritable, how="read-only"),
    "checkpoints too large": partial(checkpoints_unwritable, how="file size"),
    "log read-only": log_read_only,
    **{f"{how} checkpoint": partial(damaged_checkpoint, how=how) for how in DAMAGE},
    **{f"checkpoint of another {of}": partial(refused_checkpoint, of=of) for of in ("recipe", "model", "dataset")},
    **{f"shard {how}": partial(shard_fault, how=how) for how in ("missing", "truncated", "swapped", "other bytes")},
    "shard cut midway": shard_cut_midway,
    "corrupt images": corrupt_images,
    "slow reads": slow_reads,
    "loader hangs": partial(hangs, at="reading", do="hang", expected="training, waiting for data"),
    "rank hangs in a step": partial(hangs, at="step", do="hang", expected="in step 5: training"),
    "rank hangs in validation": partial(hangs, at="validation", do="hang", expected="validation"),
    "rank stopped": partial(hangs, at="step", do="SIGSTOP", expected="is silent"),
    "loss NaN": partial(not_finite, how="nan"),
    "learning rate 1e30": partial(not_finite, how="lr"),
    "weights NaN": weights_not_finite,
    "out of memory in validation": out_of_memory_in_validation,
    "out of memory on rank 0": partial(out_of_memory, rank=0),
    "out of memory on rank 1": partial(out_of_memory, rank=1),
}
# A part for every day, that has each kind of fault.
QUICK = (
    "SIGKILL in a random step", "SIGINT to python, validation", "2 → 1 → 3 → 2 ranks", "disk full",
    "shard cut midway", "loader hangs",
)  # fmt: skip
