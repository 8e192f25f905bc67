"""The files of the cluster page: their syntax, and Slurm's script with stand-ins for Slurm's commands."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from penstock import train
from penstock.recipes import Recipe, recipe_file
from penstock.recipes.config import load_config

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = sorted((DOCS / "cluster").glob("*.sh"))
OPTIONS = {name for param in train.main.params if isinstance(param, click.Option) for name in param.opts}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_every_file_is_on_the_page() -> None:
    page = (DOCS / "clusters.md").read_text()
    linked = set(re.findall(r"\]\((cluster/[^)]+)\)", page))
    assert linked == {f"cluster/{path.name}" for path in (DOCS / "cluster").iterdir()}


@pytest.mark.parametrize("file", sorted((DOCS / "cluster").iterdir()), ids=lambda path: path.name)
def test_options_and_recipes_exist(file: Path) -> None:
    text = file.read_text()
    used = text[text.index("train.py --data") if ".sh" in file.name else text.index("args: [") :]
    assert set(re.findall(r"--[a-z][a-z-]+", used)) & OPTIONS == {"--data", "--recipe", "--run-dir"}
    (name,) = re.findall(r"rn50-[a-z0-9]+", text.replace("${RECIPE:-", ""))[:1]
    load_config(Recipe, recipe_file(name))


def test_the_global_batch_divides_by_every_number_of_nodes() -> None:
    manifest = yaml.safe_load((DOCS / "cluster/pytorchjob.yaml").read_text())["spec"]
    arguments = manifest["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["args"]
    script = (DOCS / "cluster/torchrun.sh").read_text()
    ((least, most),) = re.findall(r"NODES:-(\d):(\d)", script)
    recipes = {
        arguments[arguments.index("--recipe") + 1]: range(1, manifest["elasticPolicy"]["maxReplicas"] + 1),
        re.findall(r"RECIPE:-([a-z0-9-]+)", script)[0]: range(int(least), int(most) + 1),
    }
    for recipe, nodes in recipes.items():
        size = load_config(Recipe, recipe_file(recipe)).train.global_batch_size
        assert not any(size % (8 * number) for number in nodes)


@pytest.mark.parametrize("file", sorted((DOCS / "cluster").iterdir()), ids=lambda path: path.name)
def test_nodes_may_come_later(file: Path) -> None:
    """tests/nightly/hosts shows that it takes this."""
    assert re.search(r'TORCH_DISABLE_SHARE_RDZV_TCP_STORE(=1| .*\n +value: "1")', file.read_text())


def test_settings_on_the_page_exist() -> None:
    known = {f"{section}.{name}" for section, part in vars(Recipe()).items() for name in vars(part)}
    named = set(re.findall(r"`((?:data|train)\.[a-z_]+)", (DOCS / "clusters.md").read_text())) - {"train.py"}
    assert named <= known
    assert len(named) >= 4


def test_the_manifest() -> None:
    job: dict[str, Any] = yaml.safe_load((DOCS / "cluster" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    elastic, worker = job["spec"]["elasticPolicy"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert elastic["minReplicas"] <= worker["replicas"] <= elastic["maxReplicas"]
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"  # the operator looks for it
    assert container["resources"]["limits"]["nvidia.com/gpu"] == elastic["nProcPerNode"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] > 30
    words = [*container["command"], *container["args"]]
    assert words[:2] == ["torchrun", "train.py"]
    assert {word for word in words if word.startswith("--")} <= OPTIONS
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert all(any(word.startswith(path) for path in paths) for word in words if word.startswith("/"))


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun and scontrol note what they are asked, and a step ends on SIGTERM with 143."""
    stand_ins = {
        "scontrol": 'case "$1 $2" in "show hostnames") printf "node7\\nnode8\\n";; '
        '"show job") echo "JobId=41007 JobState=RUNNING PreemptTime=${PREEMPTED:-None} Requeue=1";; '
        '*) echo "scontrol $*" >> "$NOTES";; esac',
        "srun": 'echo "srun $*" >> "$NOTES"; trap \'echo TERM >> "$NOTES"; exit 143\' TERM; '
        "for i in $(seq 100); do sleep 0.05; [ -e \"$NOTES.end\" ] && exit \"$(cat \"$NOTES.end\")\"; done",
    }  # fmt: skip
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41007", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    notes = {"NOTES": str(tmp_path / "notes"), "DATA": "/shared/x", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return job | notes


def _start(env: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([DOCS / "cluster" / "slurm.sh", *arguments], env=env, start_new_session=True)
    deadline = time.monotonic() + 10
    while not Path(env["NOTES"]).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)  # until the script waits
    return process


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_requeues_when_it_is_told_to_stop(number: signal.Signals, slurm: dict[str, str]) -> None:
    process = _start(slurm, "--set", "train.epochs=2")
    process.send_signal(number)
    assert process.wait(10) == 0
    first, *rest = Path(slurm["NOTES"]).read_text().splitlines()
    assert "--rdzv-endpoint node7:29407 --rdzv-id 41007-0 train.py --data /shared/x" in first
    assert first.endswith("--run-dir runs/slurm-41007 --set train.epochs=2")
    assert rest == ["TERM", "scontrol requeue 41007"]  # the step first


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, True)])
def test_slurm_requeues_when_the_steps_alone_were_signalled(status: int, requeued: bool, slurm: dict[str, str]) -> None:
    """As where a job is preempted: the ranks end with a checkpoint, and torchrun with 1. What was ready stays so."""
    process = _start(slurm | {"PREEMPTED": "2026-01-31T12:00:00"})
    end = Path(f"{slurm['NOTES']}.end")
    end.with_suffix(".tmp").write_text(str(status))
    end.with_suffix(".tmp").rename(end)
    assert process.wait(10) == 0
    assert ("requeue" in Path(slurm["NOTES"]).read_text()) == requeued


@pytest.mark.parametrize("status", [0, 3])
def test_slurm_does_not_requeue_what_ended(status: int, slurm: dict[str, str]) -> None:
    process = _start(slurm)
    end = Path(f"{slurm['NOTES']}.end")
    end.with_suffix(".tmp").write_text(str(status))
    end.with_suffix(".tmp").rename(end)
    assert process.wait(10) == status
    assert "requeue" not in Path(slurm["NOTES"]).read_text()


def test_scripts_say_what_they_need() -> None:
    for script in SCRIPTS:
        done = subprocess.run([script], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
        assert done.returncode == 1
        assert "a packed dataset, or its URL" in done.stderr or "name or address" in done.stderr
