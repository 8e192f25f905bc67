"""`pack` killed, interrupted, out of disk, or on a cluster: the same bytes in the end, or a one-line error."""

import fcntl
import os
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from penstock.shard_tools import workers
from penstock.shard_tools.encode import EncodeConfig
from penstock.shard_tools.resume import work_dir
from penstock.shard_tools.sources.base import Place, Source, SourceImage
from penstock.shard_tools.writer import PackOptions, pack
from tests.common import forked
from tests.common.packing import cli, finished_shards, hashes, write_source


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


def start(*arguments: object) -> forked.Forked:
    return forked.start(["-m", "shard_tools", *arguments])


def wait_for_parts(run: forked.Forked, out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while run.poll() is None and len(finished_shards(out)) < count and time.monotonic() < deadline:
        time.sleep(0.002)


KILLS = """
import os, random, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests.common.packing import finished_shards, hashes
from penstock.shard_tools import workers
from penstock.shard_tools.resume import work_dir
from penstock.shard_tools.encode import EncodeConfig
from penstock.shard_tools.sources.base import Place, Source, SourceImage
from penstock.shard_tools.writer import PackOptions, pack

ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT

def run(source, out):
    with ThreadPoolExecutor(2) as executor:
        options = PackOptions(samples_per_shard=4, on_bad="skip", encode=EncodeConfig(pixels=0.5))
        pack(source, out, options, executor=executor)

source, whole, out = map(Path, sys.argv[1:])
run(source, whole)  # also imports all there is
expected = hashes(whole)
start = time.monotonic()
run(source, whole.with_name("timed"))
took_s = time.monotonic() - start
killed = most = resumed = 0
random.seed(0)
while killed < 20:
    began = finished_shards(out)
    child = os.fork()
    if child == 0:
        run(source, out)
        os._exit(0)
    enough = len(began) + random.randrange(4)  # several kills a run, on a machine of any speed
    while len(finished_shards(out)) < enough and not os.waitid(os.P_PID, child, ENDED):
        time.sleep(0.001)
    time.sleep(random.uniform(0.0, took_s / 10))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if (out / "dataset.json").exists():
        run(source, out)  # perhaps it was killed before the very end
        assert hashes(out) == expected
        out = out.with_name(out.name + "x")
        continue
    now = finished_shards(out)
    assert began.items() <= now.items(), "a finished shard was made again"
    most = max(most, len(now))
    resumed += bool(began)
run(source, out)
assert hashes(out) == expected
print(killed, most, resumed)
"""


def test_killed_twenty_times_it_ends_with_the_same_bytes(tmp_path):
    """Some images are bad, half of the others become pixels."""
    source = write_source(tmp_path / "source")
    for i in range(9):
        (source / "train" / "class1" / f"bad{i}.jpg").write_bytes(b"no image")
    result = forked.run(["-c", KILLS, source, tmp_path / "whole", tmp_path / "out"], timeout=300)
    assert result.returncode == 0, result.stderr
    killed, most, resumed = map(int, result.stdout.split())
    assert killed == 20
    assert most >= 10
    assert resumed >= 5


def test_workers_die_with_their_parent(source, tmp_path):
    run = start("pack", source, tmp_path / "out", "--samples-per-shard", "1")
    wait_for_parts(run, tmp_path / "out", 1)
    run.kill()
    run.communicate(timeout=20)  # returns when the last process that holds stderr has gone
    time.sleep(0.2)
    count = len(finished_shards(tmp_path / "out"))
    time.sleep(0.3)
    assert 1 <= count < 115
    assert len(finished_shards(tmp_path / "out")) == count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_soon_and_says_how_to_go_on(source, tmp_path, number):
    run = start("pack", source, tmp_path / "out", "--samples-per-shard", "1")
    wait_for_parts(run, tmp_path / "out", 8)
    began = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # a terminal sends Ctrl-C to the workers too
    else:
        run.send_signal(number)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 130, errors
    assert "same command again" in errors
    assert len(errors.splitlines()) == 1
    assert time.monotonic() - began < 10
    assert 1 <= len(finished_shards(tmp_path / "out")) < 115
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_pool_that_is_writing_a_large_task_ends_at_once():
    code = """
import time
from penstock.shard_tools.workers import process_pool
try:
    with process_pool(2) as pool:
        for i in range(2):
            pool.submit(time.sleep, 60)
        for i in range(5):
            pool.submit(len, bytes(1 << 20))
        time.sleep(1)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("ended")
"""
    result = forked.run(["-c", code], timeout=60)
    assert (result.stdout, result.stderr) == ("ended\n", "")


class OneFile(Source):
    """A source with one image, at a place that cannot be read."""

    format, explained = "made", "made up"

    def __init__(self, file: Path | str, size: int):
        self.image = SourceImage("train", "a", "1.jpg", size, Place("file", str(file)))

    def images(self, work):
        yield self.image


def test_what_cannot_be_read_is_one_line(tmp_path):
    """Root may read every file, so these are files that nobody can read."""
    with ThreadPoolExecutor(1) as executor:
        for file, reason in {
            "/proc/self/mem": "Input/output error",
            tmp_path: "Is a directory",
            "/no": "No such",
        }.items():
            with pytest.raises(ValueError, match=f"{file}: cannot be read .{reason}") as caught:
                pack(OneFile(file, 5), tmp_path / "out", executor=executor)
            assert "\n" not in str(caught.value)
        assert (tmp_path / "out" / ".pack").exists()
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "1.jpg").symlink_to("/no")
    with pytest.raises(ValueError, match=r"a/1.jpg: a link to /no: no such file"):
        pack(tmp_path / "tree", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("limit_bytes", [1000, 5000, 20_000])
def test_a_full_disk_is_one_line_and_loses_nothing(source, tmp_path, limit_bytes):
    """While listing, while writing an index, while writing a tar."""
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as executor:
        pack(source, tmp_path / "whole", PackOptions(samples_per_shard=8), executor=executor)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
        try:
            with pytest.raises(ValueError, match=r"cannot be written .File too large") as caught:
                pack(source, out, PackOptions(samples_per_shard=8), executor=executor)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(caught.value)
        assert list(out.glob(".*.tmp")) == []
        pack(source, out, PackOptions(samples_per_shard=8), executor=executor)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_second_run_in_the_same_directory_is_refused(source, tmp_path):
    with work_dir(tmp_path / "out"):
        result = cli("pack", source, tmp_path / "out")
        assert "another process is packing into it" in result.stderr
        assert (tmp_path / "out" / ".pack" / "lock").exists()


def test_a_dask_cluster_writes_the_same_bytes(source, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    with ThreadPoolExecutor(1) as executor:
        pixels = EncodeConfig(pixels=0.5)
        pack(source, tmp_path / "here", PackOptions(samples_per_shard=10, encode=pixels), executor=executor)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    # Starting workers leaves OMP_NUM_THREADS=1 and more in this process, which later tests' processes would inherit.
    with mock.patch.dict(os.environ), distributed.LocalCluster(**options) as cluster:
        arguments = ("--samples-per-shard", 10, "--pixels", 0.5, "--scheduler", cluster.scheduler_address)
        result = cli("pack", source, tmp_path / "there", *arguments)
        assert result.exit_code == 0, result.output
        assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
        broken = write_source(tmp_path / "broken")
        (broken / "train/class1/bad.jpg").write_bytes(b"bad")
        result = cli("pack", broken, tmp_path / "bad", *arguments)
        assert "train/class1/bad.jpg: not a JPEG" in result.stderr
    monkeypatch.setattr(workers, "CONNECT_S", 0.3)
    result = cli("pack", source, tmp_path / "nobody", "--scheduler", "tcp://127.0.0.1:9")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert "no Dask scheduler answers" in result.stderr
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "needs Dask" in cli("pack", source, tmp_path / "nobody", "--scheduler", "tcp://127.0.0.1:9").stderr


def test_a_killed_demo_leaves_its_images_until_the_next(tmp_path):
    from penstock.shard_tools.demo import make_demo

    stale = tmp_path / ".a-images-killed"
    (stale / "train").mkdir(parents=True)
    used = tmp_path / ".a-images-used"
    used.mkdir()
    descriptor = os.open(used, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as executor:
        make_demo(tmp_path / "a", {"train": 20, "val": 10}, executor=executor)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a-images-used", "a"]
    os.close(descriptor)
