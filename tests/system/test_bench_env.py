"""`bench.py env`: it shows every fact that a bug report needs, on any machine, even if parts are missing."""

import json
import os
import platform
import resource
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from penstock import bench
from penstock.benchmarks.env import facts
from penstock.pipeline import probe
from penstock.training import environment

ROOT = Path(__file__).parents[2]
VERSIONS = {"torch": "torch", "torchvision": "torchvision", "webdataset": "webdataset", "numpy": "numpy",
            "numba": "numba", "timm": "timm", "Pillow": "pillow", "simplejpeg": "simplejpeg"}  # fmt: skip
NAMES = ["Penstock", "OS", "Python", "torch", "torchvision", "DALI", "nvImageCodec", "webdataset", "numpy", "numba",
         "timm", "Pillow", "simplejpeg", "GPU driver", "GPU", "JPEG decoders", "CPU", "cores", "bf16 on the CPU",
         "memory", "open files", "/dev/shm"]  # fmt: skip
SMI = """GPU-11111111-2222-3333-4444-555555555555, NVIDIA H100 80GB HBM3, 81559, 9.0, 700.00
GPU-66666666-7777-8888-9999-000000000000, Tesla T4, 15360, 7.5, [N/A]"""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "jpeg_decoders", lambda: ["cpu"])


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    monkeypatch.setattr(environment, "driver_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def run(*options: str) -> str:
    done = CliRunner().invoke(bench.main, ["env", *options])
    assert done.exit_code == 0, done.output
    assert not done.exception
    return done.stdout


def shown(*options: str) -> dict[str, str]:
    """Return name → value. Of several problems it has the last."""
    lines = run(*options).splitlines()
    width = lines[0].index(lines[0].split()[1])  # the first line is Penstock's, with a value that begins with a digit
    assert all(line[width - 2 : width] == "  " and line[width] != " " for line in lines), "the values are not aligned"
    return {line[:width].strip(): line[width:] for line in lines}


def without(monkeypatch: pytest.MonkeyPatch, *prefixes: str) -> None:
    real = metadata.version

    def version(package: str) -> str:
        if package.startswith(prefixes):
            raise metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.usefixtures("no_gpu")
def test_no_fact_is_lost() -> None:
    found = shown()
    problems = {"problem"} & set(found)
    assert list(found) == [*NAMES, *problems]
    assert all(found.values())
    assert found["Python"] == platform.python_version()
    assert f"{platform.release()}-" in found["OS"]
    for name, package in VERSIONS.items():
        assert found[name].partition(",")[0] == metadata.version(package), name
    assert found["torch"].endswith(f", for CUDA {torch.version.cuda or 'none'}")
    assert found["cores"].startswith(f"{len(os.sched_getaffinity(0))} allowed")
    soft, hard = ("unlimited" if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    assert found["open files"] == f"limit {soft}, hard limit {hard}"
    assert (found["GPU driver"], found["GPU"]) == ("none", "none")
    assert found["JPEG decoders"] == "CPU (libjpeg-turbo)"
    total_kib = int(Path("/proc/meminfo").read_text().partition("MemTotal:")[2].split()[0])
    assert float(found["memory"].split()[0]) == pytest.approx(total_kib * 1024 / 1e9, abs=0.1)


def test_versions_of_what_comes_for_one_cuda_or_the_other() -> None:
    there = {one.name.lower().replace("_", "-"): one.version for one in metadata.distributions() if one.name}
    for name, prefix in (("DALI", "nvidia-dali-cuda"), ("nvImageCodec", "nvidia-nvimgcodec-cu")):
        (package,) = (one for one in there if one.startswith(prefix))
        assert shown()[name] == f"{there[package]} ({package})"


def test_the_commit_and_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit = f"commit {done.stdout[:12]}" if done.returncode == 0 else "no git commit"
    assert shown()["Penstock"].removesuffix(", changed") == f"{version}, {commit}"


@pytest.mark.parametrize(("changed", "expected"), [(True, "commit 0123456789ab, changed"), (False, "0123456789ab")])
def test_a_changed_checkout(changed: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_git", lambda *words: "0123456789abcdef")
    monkeypatch.setattr(environment, "_git_changed", lambda: changed)
    assert shown()["Penstock"].endswith(expected)


@pytest.mark.usefixtures("no_gpu")
def test_without_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "nvidia-", "timm")
    monkeypatch.setattr(facts, "jpeg_decoders", lambda: pytest.fail("asks for decoders without DALI"))
    found = shown()
    assert [found[name] for name in ("DALI", "nvImageCodec", "timm")] == ["not installed"] * 3
    assert found["JPEG decoders"] == "none"
    assert "problem" not in found


@pytest.mark.usefixtures("no_gpu")
def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    monkeypatch.setitem(sys.modules, "torch", None)  # an import fails
    found = shown()
    assert found["torch"] == found["torchvision"] == "not installed"
    assert found["problem"].startswith("torch: ")
    assert found["numpy"] == metadata.version("numpy")


def test_two_dalis_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_version", lambda package: "2.4.0")
    assert "both write into one directory" in shown()["problem"]


def test_every_gpu_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is known to both, the second is hidden from torch, and the third is unknown to nvidia-smi."""
    settings = "580.65.06, 345, 1980, 2619, 700.00"
    monkeypatch.setattr(
        environment, "printed", lambda *command: {"--query-gpu=uuid": SMI}.get(command[1].partition(",")[0], settings)
    )
    of_torch = [
        SimpleNamespace(uuid="11111111-2222-3333-4444-555555555555", name="x", total_memory=1, major=1, minor=1),
        SimpleNamespace(uuid="of-a-part", name="NVIDIA H100 MIG", total_memory=10**10, major=9, minor=0),
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: of_torch[index])
    monkeypatch.setattr(environment, "driver_cuda", lambda: (12, 8))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(facts, "jpeg_decoders", lambda: ["cuda", "cpu"])
    found = shown()
    assert found["GPU driver"] == "580.65.06, for CUDA 12.8"
    assert found["GPU 0"] == "NVIDIA H100 80GB HBM3, 85.5 GB, compute capability 9.0, power limit 700 W"
    assert found["GPU 1"] == "Tesla T4, 16.1 GB, compute capability 7.5, not seen by torch"
    assert found["GPU 2"] == "NVIDIA H100 MIG, 10.0 GB, compute capability 9.0"
    assert found["JPEG decoders"] == "CUDA (nvJPEG), CPU (libjpeg-turbo); not working: the GPU's JPEG engine"
    assert "torch needs CUDA 13" in found["problem"], "the driver is too old"


def test_what_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise OSError("libbroken.so: cannot open\nmore")

    monkeypatch.setattr(facts, "jpeg_decoders", broken)
    for module, name in ((torch.cuda, "get_device_properties"), (environment, "driver_cuda"),
                         (platform, "freedesktop_os_release"), (facts, "shm_gb")):  # fmt: skip
        monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    problems = json.loads(run("--json"))["problems"]
    assert problems == [f"{what}: libbroken.so: cannot open" for what in ("JPEG decoders", "torch", "driver", "OS",
                                                                          "/dev/shm")]  # fmt: skip
    assert shown()["problem"].endswith("libbroken.so: cannot open")


def test_json_to_stdout_and_to_a_file(tmp_path: Path) -> None:
    printed = json.loads(run("--json"))
    assert set(printed) == {"env", "os", "memory_limit_gb", "driver_cuda", "gpus", "jpeg_decoders", "cpu_bf16",
                            "open_files", "shm_gb", "problems"}  # fmt: skip
    assert {"penstock", "git_commit", "git_changed", "python", "platform", "packages", "cpu", "cores_allowed",
            "memory_gb", "cuda", "gpu_driver"} <= set(printed["env"])  # fmt: skip
    assert printed["env"]["packages"]["torch"] == metadata.version("torch")
    assert run("--json", str(tmp_path / "env.json")) == ""
    written = json.loads((tmp_path / "env.json").read_text())
    assert written["env"]["packages"] == printed["env"]["packages"]
    done = CliRunner().invoke(bench.main, ["env", "--json", str(tmp_path / "none" / "env.json")])
    assert (done.exit_code, "No such file" in done.output) == (1, True)


def test_the_decoders_of_this_machine() -> None:
    found = probe.jpeg_decoders()
    assert "cpu" in found
    if not torch.cuda.is_available():
        assert found == ["cpu"]


def ended(status: int, error: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.CompletedProcess([], status, b"dlopen failed", error)


def test_a_crash_while_decoders_are_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert facts.jpeg_decoders() == probe.jpeg_decoders(), "from a process of its own"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended(-11, b""))
    with pytest.raises(RuntimeError, match=r"^SIGSEGV$"):
        facts.jpeg_decoders()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended(1, b"Traceback\nImportError: no libnvimgcodec"))
    with pytest.raises(RuntimeError, match=r"^exit status 1: ImportError: no libnvimgcodec$"):
        facts.jpeg_decoders()

    def hangs(*_: object, **more: Any) -> None:
        raise subprocess.TimeoutExpired("", more["timeout"])

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(RuntimeError, match="no answer in 60 s"):
        facts.jpeg_decoders()
