"""`benchmarks.gpu`: stages that crash, hang or fail; the table; the list of stages."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from penstock.benchmarks.gpu import kernels, runs
from penstock.benchmarks.gpu.__main__ import main
from penstock.benchmarks.gpu.registry import STAGES
from penstock.benchmarks.gpu.report import read, shown
from penstock.benchmarks.gpu.run import run_part, run_stage
from penstock.benchmarks.gpu.stage import SMALL, Job, Stage
from penstock.training import checkpoint
from tests.common import forked


def stage(run: Callable[[Job], None], limit_s: float = 30.0, name: str = "one", **more: Any) -> Stage:
    return Stage(name=name, part="check", limit_s=limit_s, expected="nothing", run=run, **more)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    return Job(out=tmp_path / "out", work=tmp_path / "work", scale=SMALL)


def on_disk(job: Job, name: str = "one") -> dict[str, Any]:
    return next(one for one in json.loads((job.out / "check.json").read_text()) if one["stage"] == name)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stage_that_crashes_costs_itself_and_keeps_its_rows(job: Job) -> None:
    def crash(job: Job) -> None:
        job.report.row("before", 1.0, "s")
        os.kill(os.getpid(), signal.SIGSEGV)

    results = run_part("check", [stage(crash), stage(lambda job: job.report.row("after", 2.0, "s"), name="two")], job)
    assert [result["verdict"] for result in results] == ["failed (SIGSEGV)", "ok"]
    assert [row["what"] for row in results[0]["figures"]] == ["before"]
    assert results[0]["tail"], "what it has printed is kept"
    assert results[0] == on_disk(job)
    assert json.loads((job.out / "check.json").read_text()) == results
    assert not list(job.out.glob(".*")), "no temporary files"


def test_a_stage_that_hangs_is_ended_with_its_descendants_and_keeps_its_rows(job: Job) -> None:
    def hang(job: Job) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        job.report.row("half", 0.5, "s", details={"child": child.pid})
        time.sleep(60)

    started = time.monotonic()
    result = run_stage(stage(hang), job, limit_s=1.0)
    assert time.monotonic() - started < 20
    assert result["verdict"] == "failed (more than 1 s)"
    (row,) = result["figures"]
    deadline = time.monotonic() + 5
    while is_running(row["details"]["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(row["details"]["child"])


COMPARED = """
import sys, torch
from pathlib import Path
from penstock.benchmarks.gpu.run import FORK
from penstock.benchmarks.gpu.runs import difference

torch.set_num_threads(2)
assert difference(Path(sys.argv[1]), Path(sys.argv[2])) == 0.5
child = FORK.Process(target=lambda: print(torch.ones(1 << 20).exp().sum()))
child.start()
child.join(20)
sys.exit(child.exitcode is None and child.kill() is None)
"""


def test_programs_can_be_forked_after_weights_were_compared(tmp_path: Path) -> None:
    for name, last in (("a", 1.0), ("b", 1.5)):
        weights = torch.ones(1 << 20)
        weights[-1] = last
        state = {"net": {"weight": weights, "num_batches": torch.tensor(3)}}
        checkpoint.save(checkpoint.last_path(tmp_path / name), state)  # type: ignore[arg-type]
    done = forked.run(["-c", COMPARED, tmp_path / "a", tmp_path / "b"], timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_a_stage_leaves_running_ends_with_it(job: Job) -> None:
    def leave(job: Job) -> None:
        job.report.row("child", float(subprocess.Popen(["sleep", "60"]).pid), "pid")

    result = run_stage(stage(leave), job, limit_s=20.0)
    deadline = time.monotonic() + 5
    pid = int(result["figures"][0]["figure"])
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_a_stage_that_raises_says_so_with_its_last_lines(job: Job) -> None:
    def fail(job: Job) -> None:
        print("a line before")
        raise ValueError("no such thing")

    result = run_stage(stage(fail), job, limit_s=30.0)
    assert result["verdict"] == "failed (exit 1: ValueError: no such thing)"
    assert "a line before" in result["tail"]


def test_an_attempt_that_fails_is_a_row_and_the_stage_goes_on(job: Job) -> None:
    def some(job: Job) -> None:
        for name, error in (("a", RuntimeError("broken\nmore")), ("b", SystemExit(3)), ("c", None)):
            with job.report.attempt(name):
                if error:
                    raise error
                job.report.row(name, 3.0, "s")

    result = run_stage(stage(some), job, limit_s=30.0)
    verdicts = [row["verdict"] for row in result["figures"]]
    assert verdicts == ["failed (RuntimeError: broken)", "failed (SystemExit: 3)", "ok"]
    assert result["verdict"] == verdicts[0]


def test_a_file_of_tests_that_crashes_costs_itself(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job.work / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text("import os\ndef test_it(): os.kill(os.getpid(), 11)\n")
    (folder / "test_b.py").write_text("def test_it(): pass\ndef test_not(): assert 0\n")
    (folder / "test_c.py").write_text("def test_it(): pass\n")
    monkeypatch.setattr(runs, "TESTS", folder)
    result = run_stage(stage(runs.tests), job, limit_s=60.0)
    rows = {row["what"]: row["verdict"] for row in result["figures"]}
    assert rows["test_a.py"] == "failed (SIGSEGV)"
    assert (rows["test_b.py"], rows["test_c.py"]) == ("wrong", "ok")
    assert any(what.startswith("FAILED") for what in rows)
    assert result["verdict"].startswith("failed")
    assert "test_a.py::test_it" in result["figures"][0]["text"], "the test that crashed"


def test_stages_run_again_replace_their_own_results_alone(job: Job) -> None:
    def found(figure: float, name: str) -> Stage:
        return stage(lambda job: job.report.row("figure", figure), name=name)

    def kept() -> dict[str, float]:
        results = json.loads((job.out / "check.json").read_text())
        return {one["stage"]: one["figures"][0]["figure"] for one in results}

    run_part("check", [found(1.0, "b"), found(2.0, "c")], job)
    results = run_part("check", [found(3.0, "b"), found(4.0, "a")], job)
    assert [result["stage"] for result in results] == ["b", "a"], "those of this call"
    assert kept() == {"a": 4.0, "b": 3.0, "c": 2.0}
    run_part("check", [found(5.0, "a")], job, limit_s=0)
    assert kept() == {"a": 4.0, "b": 3.0, "c": 2.0}, "a stage that is not run has nothing to put in their place"
    run_part("check", [stage(lambda job: os.abort(), name="c")], job)
    assert on_disk(job, "c")["verdict"] == "failed (SIGABRT)", "a crash is a result"
    run_part("check", [found(2.0, "c")], job)
    with pytest.raises(ValueError, match=r"check.json: holds measured results. Give another --out."):
        run_part("check", [found(5.0, "x")], replace(job, rehearse=True))
    assert kept() == {"a": 4.0, "b": 3.0, "c": 2.0}


@pytest.mark.parametrize("compiled", [(), ("model.compile=false",)])
def test_what_is_set_lies_under_what_the_stage_sets(job: Job, compiled: tuple[str, ...]) -> None:
    def build(job: Job) -> None:
        recipe = job.resnet(*compiled)
        job.report.row("load", recipe.data.hw_decoder_load, details={"compiled": recipe.model.compile})

    sets = ("data.hw_decoder_load=0.25", "model.compile=true")
    result = run_stage(stage(build), replace(job, sets=sets), limit_s=30.0)
    assert (result["figures"][0]["figure"], result["figures"][0]["details"]["compiled"]) == (0.25, not compiled)
    assert result["settings"] == {"set": list(sets)} == on_disk(job)["settings"]
    assert run_stage(stage(build), job, limit_s=30.0)["settings"] == {}


def test_skipped_and_the_parts_deadline(job: Job) -> None:
    stages = [
        stage(lambda job: time.sleep(1.5), name="sleeps"),
        stage(lambda job: None, name="late"),
        stage(lambda job: None, 1.0, "short"),
        stage(lambda job: None, name="needs", needs=("cifar",)),
        stage(lambda job: None, name="lacks", needs=("nosuch.module",)),
    ]
    results = run_part("check", stages, job, limit_s=16.0)
    verdicts = [result["verdict"] for result in results]
    assert verdicts[0] == "ok"
    assert verdicts[1].startswith("not run: no time")
    assert verdicts[2] == "ok", "what is left is enough for it"
    assert verdicts[3:] == [
        "skipped: needs packed CIFAR-10, given by --cifar DIR",
        "skipped: nosuch.module is not installed",
    ]
    assert json.loads((job.out / "check.json").read_text()) == results


def test_the_table_has_every_row_and_the_worst_verdict(job: Job) -> None:
    def rows(job: Job) -> None:
        job.report.row("bandwidth", [2.9], "TB/s")
        job.report.row("bandwidth", [2.9, 3.0, 3.1], "TB/s")
        job.report.row("broken", verdict="failed (it broke)")
        job.report.row("not equal", 1.0, right=False)

    result = run_stage(stage(rows), job, 30.0)
    assert [row["verdict"] for row in result["figures"]] == ["ok", "failed (it broke)", "wrong"]
    assert result["verdict"] == "failed (it broke)"
    assert (result["figures"][0]["figure"], result["figures"][0]["repeats"]) == (3.0, [2.9, 3.0, 3.1])
    table = shown(result).splitlines()
    assert table[0].startswith("check one ")
    assert table[0].endswith("failed (it broke)")
    assert "3 TB/s  [2.9–3.1]" in table[2]
    assert [line.split()[0] for line in table[2:]] == ["bandwidth", "broken", "not"]


def test_the_results_that_are_kept_can_be_read() -> None:
    files = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("gpu-*.json"))
    assert len(files) == 8
    for file in files:
        assert all(result["stage"] in shown(result) for result in read(file, rehearsed=False).values())


def test_every_stage_of_the_plan_is_there() -> None:
    assert [f"{stage.part} {stage.name}" for stage in STAGES] == [
        "check device", "check run", "check tests", "check recipes",
        "compute eager", "compute compiled", "compute profile", "compute bare", "compute graphs",
        "compute max-autotune",
        "decode hw-load", "decode threads", "decode region", "decode whole", "decode prefetch", "decode pixels",
        "train end-to-end", "train explain", "train cifar10", "train cifar10-cpu", "train cifar10-muon",
        "train accumulated", "train resume", "train dali-example", "train end-to-end-threads",
    ]  # fmt: skip
    for one in STAGES:
        assert one.limit_s <= 450
        assert one.expected
        assert set(one.needs) <= {"gpu", "cifar", "pytest", "nvidia.dali", "simplejpeg"}
        assert one.part in ("decode", "train") or "nvidia.dali" not in one.needs or one.name == "tests"


def test_without_a_gpu_one_line_names_the_rehearsal(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(main, ["check", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output == ("Error: torch sees no GPU. Add --rehearse to run every stage at a small size on the CPU.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--only", "nothing"], "--only nothing: no such stage. check has device, run"),
        (["train", "--cifar", "tests"], "no packed dataset here"),
        (["all", "--list"], "compute max-autotune        240 s"),
        (["train", "--set", "data.hw_decoder_laod=1"], "--set data.hw_decoder_laod=1: "),
        (["train", "--set", "data.hw_decoder_load=1.5"], "hw_decoder_load: 1.5 must be between 0 and 1"),
    ],
)
def test_what_the_command_says(arguments: list[str], message: str) -> None:
    assert message in CliRunner().invoke(main, arguments).output


@pytest.mark.parametrize(
    ("kernel", "operator", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", "aten::cudnn_convolution", "convolution, forward"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16", "aten::convolution_backward", "convolution, input gradient"),
        ("cutlass__wgrad_something", "aten::convolution_backward", "convolution, weight gradient"),
        ("nvjet_tst_128x256", "aten::convolution_backward", "convolution, backward"),
        ("nvjet_tst_128x256", "aten::cudnn_convolution", "convolution, forward"),
        ("nvjet_tst_128x256", "aten::addmm", "linear"),
        ("void at::native::batch_norm_collect_statistics_channels_last", "aten::native_batch_norm", "batch norm"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW", "aten::cudnn_batch_norm", "batch norm"),
        ("triton_red_fused__native_batch_norm_legit_functional_3", "", "batch norm"),
        ("triton_poi_fused_add_relu_12", "", "relu, addition, other elementwise"),
        ("void at::native::max_pool_forward_nhwc", "aten::max_pool2d_with_indices", "pooling"),
        ("void at::native::multi_tensor_apply_kernel<FusedSgd>", "aten::_fused_sgd_", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "aten::copy_", "copies and layout"),
        ("void at::native::vectorized_elementwise_kernel<4, threshold>", "aten::threshold_backward",
         "relu, addition, other elementwise"),
        ("something_new", "", "other"),
    ],
)  # fmt: skip
def test_kernels_have_their_class(kernel: str, operator: str, kind: str) -> None:
    assert kernels.class_of(kernel, operator) == kind


def test_a_profile_is_summed_by_class() -> None:
    """One name of a kernel under two operators; a kernel that no operator claims; an annotation."""
    kinds = torch.autograd.DeviceType

    def operator(name: str, **launched: float) -> Any:
        kernels = [SimpleNamespace(name=kernel, duration=us) for kernel, us in launched.items()]
        return SimpleNamespace(name=name, device_type=kinds.CPU, kernels=kernels)

    def kernel(name: str, us: float, note: bool = False) -> Any:
        span = SimpleNamespace(elapsed_us=lambda: us)
        return SimpleNamespace(name=name, device_type=kinds.CUDA, is_user_annotation=note, time_range=span)

    events = [operator("aten::cudnn_convolution", nvjet=2000.0), operator("aten::convolution_backward", nvjet=1000.0)]
    events += [kernel("nvjet", 2000.0), kernel("nvjet", 1000.0), kernel("x", 500.0)]
    events.append(kernel("Optimizer.step#SGD.step", 4000.0, note=True))
    assert kernels.by_class(events, on_gpu=True) == {
        ("convolution, forward", "nvjet"): 2.0, ("convolution, backward", "nvjet"): 1.0, ("other", "x"): 0.5,
    }  # fmt: skip
