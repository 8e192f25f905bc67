"""`benchmarks.gpu`: what becomes of stages that crash, hang or fail; verdicts, the table, the stages there are."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.gpu import check, compute, expected, kernels, pixels
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.registry import PARTS, STAGES
from benchmarks.gpu.report import Skipped
from benchmarks.gpu.run import NEEDS, run_part, run_stage
from benchmarks.gpu.stage import SMALL, Job, Stage
from benchmarks.gpu.table import summary, table
from pipeline.batch import Batch
from pipeline.config import DataConfig

BOUNDS = expected.Bounds(3.0, 790)


def stage(run: Callable[[Job], None], limit_s: float = 30.0, name: str = "one", **more: Any) -> Stage:
    return Stage(name=name, part="check", limit_s=limit_s, expected="nothing", run=run, **more)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """As on a GPU, since verdicts are not worked out in a rehearsal."""
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    return Job(out=tmp_path / "out", work=tmp_path / "work", scale=SMALL, env={"gpu": "NVIDIA H100 80GB HBM3"})


def on_disk(job: Job, name: str = "one") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.out / f"check-{name}.json").read_text())
    return found


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
    assert [result["verdict"] for result in results] == ["failed (SIGSEGV)", "measured"]
    assert [row["what"] for row in results[0]["figures"]] == ["before"]
    assert results[0]["tail"], "what it has printed is kept"
    assert results[0] == on_disk(job)
    assert json.loads((job.out / "check.json").read_text()) == results
    assert not list(job.out.glob(".*")), "no temporary files"


def test_a_stage_that_hangs_is_ended_with_its_descendants_and_keeps_its_rows(job: Job) -> None:
    def hang(job: Job) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        job.report.row("half", 0.5, "s", child=child.pid)
        time.sleep(60)

    started = time.monotonic()
    result = run_stage(stage(hang), job, limit_s=1.0)
    assert time.monotonic() - started < 20
    assert result["verdict"] == "failed (more than 1 s)"
    (row,) = result["figures"]
    deadline = time.monotonic() + 5
    while is_running(row["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(row["child"])


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
        for name, error in (("a", RuntimeError("broken\nmore")), ("b", Skipped("not here")), ("c", None)):
            with job.report.attempt(name):
                if error:
                    raise error
                job.report.row(name, 3.0, "s")

    result = run_stage(stage(some), job, limit_s=30.0)
    verdicts = [row["verdict"] for row in result["figures"]]
    assert verdicts == ["failed (RuntimeError: broken)", "skipped: not here", "measured"]
    assert result["verdict"] == verdicts[0]


def test_a_gpu_that_is_lost_ends_the_stage(job: Job) -> None:
    def lose(job: Job) -> None:
        with job.report.attempt("a"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        job.report.row("never", 1.0)

    result = run_stage(stage(lose), job, limit_s=30.0)
    assert result["verdict"].startswith("failed (exit 1: RuntimeError: CUDA error")
    assert [row["what"] for row in result["figures"]] == ["a"]


def test_a_file_of_tests_that_crashes_costs_itself(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job.work / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text("import os\ndef test_it(): os.kill(os.getpid(), 11)\n")
    (folder / "test_b.py").write_text("def test_it(): pass\ndef test_not(): assert 0\n")
    (folder / "test_c.py").write_text("def test_it(): pass\n")
    monkeypatch.setattr(check, "TESTS", folder)
    result = run_stage(stage(check.tests), job, limit_s=60.0)
    rows = {row["what"]: row["verdict"] for row in result["figures"]}
    assert rows["test_a.py"] == "failed (SIGSEGV)"
    assert (rows["test_b.py"], rows["test_c.py"]) == ("wrong", "ok")
    assert any(what.startswith("FAILED") for what in rows)
    assert result["verdict"].startswith("failed")
    assert "test_a.py::test_it" in result["figures"][0]["text"], "the test that crashed"


def test_stages_run_again_replace_their_own_results_alone(job: Job) -> None:
    def found(figure: float, name: str) -> Stage:
        return stage(lambda job: job.report.row("figure", figure), name=name)

    def kept() -> list[tuple[str, float]]:
        return [(one["stage"], one["figures"][0]["figure"]) for one in json.loads((job.out / "check.json").read_text())]

    order = ["a", "b", "c"]
    run_part("check", [found(1.0, "b"), found(2.0, "c")], job, order=order)
    results = run_part("check", [found(3.0, "b"), found(4.0, "a")], job, order=order)
    assert [result["stage"] for result in results] == ["b", "a"], "those of this call"
    assert kept() == [("a", 4.0), ("b", 3.0), ("c", 2.0)]
    run_part("check", [found(5.0, "a")], job, limit_s=0, order=order)
    assert kept() == [("a", 4.0), ("b", 3.0), ("c", 2.0)], "a stage that is not run has nothing to put in their place"
    assert json.loads((job.out / "check-a.json").read_text())["figures"][0]["figure"] == 4.0
    run_part("check", [stage(lambda job: os.abort(), name="c")], job, order=order)
    (crashed,) = (one for one in json.loads((job.out / "check.json").read_text()) if one["stage"] == "c")
    assert crashed["verdict"] == "failed (SIGABRT)", "a crash is a result"
    run_part("check", [found(2.0, "c")], job, order=order)
    with pytest.raises(ValueError, match=r"check.json holds measured results: give another --out"):
        run_part("check", [found(5.0, "x")], replace(job, rehearse=True), order=order)
    assert kept() == [("a", 4.0), ("b", 3.0), ("c", 2.0)]


@pytest.mark.parametrize("compiled", [(), ("model.compile=false",)])
def test_what_is_set_lies_under_what_the_stage_sets(job: Job, compiled: tuple[str, ...]) -> None:
    def build(job: Job) -> None:
        recipe = job.resnet(*compiled)
        job.report.row("load", recipe.data.hw_decoder_load, compiled=recipe.model.compile)

    sets = ("data.hw_decoder_load=0.25", "model.compile=true")
    result = run_stage(stage(build), replace(job, sets=sets), limit_s=30.0)
    assert (result["figures"][0]["figure"], result["figures"][0]["compiled"]) == (0.25, not compiled)
    assert result["settings"] == {"set": list(sets)} == on_disk(job)["settings"]
    assert run_stage(stage(build), job, limit_s=30.0)["settings"] == {}
    assert run_stage(stage(lambda job: None), replace(job, sets=sets), limit_s=30.0)["settings"] == {}, (
        "it has no recipe"
    )


def test_waits_are_those_that_come_with_the_steps(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of n steps and one of 2n: what is built first, or written last, waits as often in both."""
    ran: list[int] = []

    def main(arguments: list[str], **_: Any) -> None:
        ran.append(int(arguments[arguments.index("--max-steps") + 1]))

    @contextmanager
    def waits(job: Job) -> Iterator[Counter[str]]:
        found: Counter[str] = Counter()
        yield found
        found.update({"built": 320, "each": 3 + ran[-1], "half": ran[-1] // 2, "fourth": ran[-1] // 4})
        found.update({"first run": 9} if len(ran) == 1 else {})

    monkeypatch.setattr("train.main", main)
    monkeypatch.setattr(compute, "waits", waits)
    result = run_stage(stage(compute.syncs), job, limit_s=60.0)
    rows = {row["what"]: (row["figure"], row["unit"], row["verdict"]) for row in result["figures"]}
    places = [("each", 1.0, "wrong"), ("half", 0.5, "wrong"), ("fourth", 0.25, "measured"), ("built", 0.0, "measured")]
    for place, rate, verdict in places:  # "first run" is in none that counts
        assert rows.pop(place) == (rate, "waits a step", verdict)
    assert rows == {"waits once a step or so": (2.0, "places", "wrong")}
    assert result["figures"][-1]["text"] == "each, half"
    assert {row["what"]: row["text"] for row in result["figures"]}["built"] == "320 in 4 steps, 320 in 8"
    assert result["verdict"] == "wrong"


def test_skipped_and_the_parts_deadline(job: Job) -> None:
    def skip(job: Job) -> None:
        raise Skipped("it is too small")

    stages = [
        stage(skip, name="skips"),
        stage(lambda job: time.sleep(1.5), name="sleeps"),
        stage(lambda job: None, name="late"),
        stage(lambda job: None, 1.0, "short"),
        stage(lambda job: None, name="needs", needs=("cifar",)),
    ]
    results = run_part("check", stages, job, limit_s=16.0)
    verdicts = [result["verdict"] for result in results]
    assert verdicts[:2] == ["skipped: it is too small", "ok"]
    assert verdicts[2].startswith("not run: no time")
    assert verdicts[3] == "ok", "what is left is enough for it"
    assert verdicts[4] == "skipped: needs --cifar DIR, CIFAR-10 packed"
    assert len(list(job.out.glob("check-*.json"))) == 5


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ((1.0, None, None, None, False), "measured"),
        ((1.0, None, None, True, False), "ok"),
        ((1.0, 0.9, None, None, False), "ok"),
        ((1.0, 1.1, None, None, False), "slow"),
        ((float("nan"), 1.1, None, None, False), "slow"),
        ((1.0, None, 0.9, None, False), "slow"),
        ((1.0, 0.9, None, False, False), "wrong"),
        ((1.0, 1.1, None, None, True), "rehearsed"),
        ((1.0, 0.9, None, False, True), "wrong"),
    ],
)
def test_verdicts(given: tuple[Any, ...], verdict: str) -> None:
    assert expected.verdict(*given) == verdict


def test_the_worst_verdict_is_the_stages() -> None:
    assert expected.worst(["ok", "slow", "failed (SIGSEGV)", "wrong"]) == "failed (SIGSEGV)"
    assert expected.worst(["measured", "ok", "skipped: x"]) == "skipped: x"
    assert expected.worst([]) == "ok"
    assert [expected.is_bad(one) for one in ("failed (x)", "wrong", "slow", "not run: no time")] == [
        True,
        True,
        False,
        False,
    ]


def test_bounds_are_those_of_the_device() -> None:
    assert expected.bounds_of("NVIDIA H100 80GB HBM3") == BOUNDS
    assert expected.bounds_of("NVIDIA H200").copy_tb_s == 4.3  # type: ignore[union-attr]
    assert expected.bounds_of("NVIDIA H100 PCIe") is expected.bounds_of(None) is None
    roofs = [round(expected.roof(kind, 3.0), -1) for kind in ("eager", "fused", "ideal")]
    assert roofs == [6290, 8380, 15380]
    assert expected.step_goal("eager", BOUNDS) == pytest.approx(3500, rel=0.01)
    assert expected.step_goal("fused", BOUNDS) == pytest.approx(4300, rel=0.01)
    assert expected.step_goal("fused", None) is None


def test_the_table_has_each_stage_and_whatever_is_bad(job: Job) -> None:
    def rows(job: Job) -> None:
        job.report.row("bandwidth", [2.9, 3.0, 3.1], "TB/s", at_least=2.7)
        job.report.row("hidden", 1.0, shown=False)
        job.report.row("hidden but wrong", 1.0, right=False, shown=False)

    results = [run_stage(stage(rows), job, 30.0), *run_part("check", [stage(rows, name="no", needs=("cifar",))], job)]
    text = table(results)
    assert text.splitlines()[0].split() == ["stage", "figure", "expected", "verdict"]
    assert "3 TB/s [2.9–3.1]" in text
    assert "≥ 2.7" in text
    assert "hidden but wrong" in text
    assert "\n  hidden  " not in text
    assert "check no" in text
    assert "skipped: needs --cifar" in text
    assert [row["what"] for row in summary(results)[0]["figures"]] == ["bandwidth", "hidden but wrong"]


def test_every_stage_of_the_plan_is_there() -> None:
    names = {part: [stage.name for stage in STAGES if stage.part == part] for part in PARTS}
    assert set(names["check"]) == {"device", "run", "recipes", "h2d", "tests"}
    assert set(names["compute"]) == {
        "eager", "compiled", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune", "compiled-large", "cudnn",
        "profile", "syncs", "bare",
    }  # fmt: skip
    assert {
        "whole-fancy",
        "whole-plain",
        "region-fancy",
        "region-plain",
        "hw-load",
        "threads",
        "prefetch",
        "shards",
    } == set(names["decode"])
    end_to_end = {"end-to-end", "end-to-end-no-graphs", "end-to-end-cpu", "end-to-end-threads"}
    others = {"explain", "dali-example", "dali-whole", "cifar10", "cifar10-cpu", "resume"}
    assert set(names["train"]) == end_to_end | others
    assert len({(stage.part, stage.name) for stage in STAGES}) == len(STAGES)
    for one in STAGES:
        assert one.limit_s <= 400
        assert one.expected
        assert set(one.needs) <= set(NEEDS)
        assert one.part in ("decode", "train") or "dali" not in one.needs or one.name == "tests"


def test_without_a_gpu_one_line_names_the_rehearsal(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(main, ["check", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output == "Error: torch sees no GPU here; --rehearse runs every stage in small on the CPU\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--only", "nothing"], "--only nothing: no such stage; check has device, run"),
        (["train", "--cifar", "tests"], "no packed dataset here"),
        (["all", "--list"], "compute max-autotune-no-cudagraphs   240 s"),
        (["train", "--set", "data.hw_decoder_laod=1"], "--set data.hw_decoder_laod=1: "),
        (["train", "--set", "data.hw_decoder_load=1.5"], "hw_decoder_load: 1.5 must lie in 0 to 1"),
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
    total, by_kernel = kernels.by_class(events, on_gpu=True)
    assert total == {"convolution, forward": 2.0, "convolution, backward": 1.0, "other": 0.5}
    assert by_kernel["convolution, backward"] == {"nvjet": 1.0}


def test_a_block_that_is_wrong_is_found_in_an_image_that_is_nearly_right() -> None:
    generator = torch.Generator().manual_seed(0)
    images, ids, cpu = torch.randn(2, 3, 64, 64, generator=generator), torch.arange(2), torch.device("cpu")
    theirs = [Batch(images, ids, ids)]
    close = pixels.difference(iter([Batch(images + 0.005, ids, ids)]), theirs, DataConfig(), cpu)
    assert close.mean == pytest.approx(0.005 * 57.7, rel=0.01)
    assert close.fits(fancy=True)
    broken = images.clone()
    broken[1, :, 16:32, 32:48] = -broken[1, :, 16:32, 32:48]
    found = pixels.difference(iter([Batch(broken, ids, ids)]), theirs, DataConfig(), cpu)
    assert found.worst_image < 30
    assert not found.fits(fancy=False)
    with pytest.raises(ValueError, match="samples differ"):
        pixels.difference(iter([Batch(images, ids, ids + 1)]), theirs, DataConfig(), cpu)
    with pytest.raises(ValueError, match="zip"):
        pixels.difference(iter([]), theirs, DataConfig(), cpu)
    going_on = iter([Batch(images, ids, ids), *theirs])
    assert pixels.difference(going_on, theirs, DataConfig(), cpu).worst_pixel == 0
    assert next(going_on) is theirs[0], "what comes after those that are compared is left"
