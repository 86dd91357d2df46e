"""Several hosts on one machine: namespaces of network, process ids, host name and mounts, joined by a virtual switch.

Needs root, `ip` and `tc` (Debian's iproute2) and util-linux. Nothing in a host reaches anything but the other hosts:
there is no route out. A process of one host cannot see those of another, and its machine (pretrain.runtime.heartbeats)
differs.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from processes import ENVIRONMENT, ROOT

NUMBERS = itertools.count()
# Mounts are private to the host, so its /etc/hosts is too. A host started again gives out other process ids: torchrun
# tells agents apart by host name and id.
INSIDE = (
    "mount --bind {hosts} /etc/hosts && hostname {name} && ip link set lo up && "
    'for _ in $(seq {boots}); do /bin/true; done; "$@"'
)


class Host:
    """One of them: its name, its address, and the link that can be cut or slowed."""

    def __init__(self, switch: str, name: str, address: str, hosts: Path) -> None:
        self.name, self.address, self._hosts = name, address, hosts
        self.space = f"{switch}-{name}"
        self._switch, self._port = switch, f"p-{name}"
        self._started: list[subprocess.Popen[str]] = []
        ip(f"netns add {self.space}")
        ip(f"-n {switch} link add {self._port} type veth peer name eth0 netns {self.space}")
        ip(f"-n {switch} link set {self._port} master br0 up")
        ip(f"-n {self.space} addr add {address}/24 dev eth0")
        ip(f"-n {self.space} link set eth0 up")

    def start(self, command: Sequence[object], stdin: bool = False, **environment: str) -> "subprocess.Popen[str]":
        """Start a command here, in a process space of its own: all of it ends with the process returned."""
        inside = [
            "sh",
            "-c",
            INSIDE.format(hosts=self._hosts, name=self.name, boots=10 * len(self._started)),
            "sh",
            *map(str, command),
        ]
        spaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *inside]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space, *spaces],
            cwd=ROOT,
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def die(self) -> None:
        """Lose power: the link is dead first, so that no connection is closed, then every process is killed."""
        self.cut()
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every process on this host."""
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.send_signal(signal.SIGKILL)

    def cut(self) -> None:
        """Pull the cable at the switch: packets vanish, and nobody is told."""
        ip(f"-n {self._switch} link set {self._port} down")

    def mend(self) -> None:
        """Plug it in again."""
        ip(f"-n {self._switch} link set {self._port} up")

    def slow(self, rate: str) -> None:
        """Limit what this host sends, as `50mbit`."""
        bucket = f"rate {rate} burst 64kbit latency 400ms"  # not netem, which kernels of small machines lack
        subprocess.run(["tc", "-n", self.space, *f"qdisc replace dev eth0 root tbf {bucket}".split()], check=True)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """`count` hosts named node0, node1 ...; whatever still runs on them is killed at the end."""
    switch = f"tf{os.getpid()}-{next(NUMBERS)}"
    made: list[Host] = []
    with tempfile.TemporaryDirectory() as folder:
        names = {f"node{i}": f"10.77.0.{i + 1}" for i in range(count)}
        known = Path(folder) / "hosts"
        known.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in names.items()))
        try:
            ip(f"netns add {switch}")
            ip(f"-n {switch} link add br0 type bridge")
            ip(f"-n {switch} link set br0 up")
            for name, address in names.items():
                made.append(Host(switch, name, address, known))
            yield made
        finally:
            for host in made:
                host.kill()
            for space in (*(host.space for host in made), switch):
                subprocess.run(["ip", "netns", "del", space], check=False)


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
