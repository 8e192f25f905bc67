"""Hosts for a test: network namespaces on a bridge in a namespace of its own. Nothing else is touched."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


class Network:
    """`num_hosts` hosts, 10.77.0.1 and on, each with `eth0`, plugged into one switch."""

    def __init__(self, num_hosts: int) -> None:
        self._name = f"penstock-{os.getpid()}"
        self._hosts = [f"{self._name}-{host}" for host in range(num_hosts)]

    def up(self) -> None:
        for name in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split():
            prefix, _, rest = name.partition("-")
            if prefix == "penstock" and not Path("/proc", rest.partition("-")[0]).exists():
                remove(name)  # of a test run that was killed
        ip("netns", "add", self._name)
        ip("-n", self._name, "link", "add", "br0", "type", "bridge")
        ip("-n", self._name, "link", "set", "br0", "up")
        for host, name in enumerate(self._hosts):
            ip("netns", "add", name)
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{host}", "netns", self._name)
            ip("-n", self._name, "link", "set", f"port{host}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{address(host)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")

    def down(self) -> None:
        """Remove everything, including the processes. The links disappear with their namespaces."""
        for name in (*self._hosts, self._name):
            remove(name)

    def crash(self, host: int) -> None:
        """End everything that runs on the host, as a machine that is switched off."""
        kill_all(self._hosts[host])

    def cut(self, host: int) -> None:
        """Pull the host's cable: no packet arrives, and no connection notices that it is closed."""
        ip("-n", self._name, "link", "set", f"port{host}", "down")

    def mend(self, host: int) -> None:
        ip("-n", self._name, "link", "set", f"port{host}", "up")

    def torchrun(self, host: int, nodes: str, arguments: list[str], logs: Path) -> subprocess.Popen[bytes]:
        """Start torchrun with one rank on a host, with logs/host-N.log as its log. Host 0 hosts the rendezvous."""
        launcher = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", "1"),
            *("--max-restarts", "5", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address(0)}:29400"),
            *("--rdzv-id", "hosts", "--rdzv-conf", f"is_host={int(host == 0)},last_call_timeout=3"),
            *("--local-addr", address(host)),
        ]
        env = os.environ | {
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        with (logs / f"host-{host}.log").open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._hosts[host], *launcher, str(ROOT / "train.py"), *arguments],
                cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip


@contextmanager
def network(num_hosts: int) -> Iterator[Network]:
    built = Network(num_hosts)
    try:
        built.up()
        yield built
    finally:
        built.down()


def remove(name: str) -> None:
    kill_all(name)
    subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def kill_all(name: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    for pid in map(int, found.stdout.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def address(host: int) -> str:
    return f"10.77.0.{host + 1}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def permitted() -> bool:
    """Whether namespaces can be made here."""
    try:
        with network(1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
