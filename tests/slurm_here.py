"""A real Slurm (slurmctld, slurmd, munge) on hosts of tests/hosts.py; the first node is also the controller."""

import contextlib
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hosts import Host, hosts

CONFIG = """
ClusterName=here
SlurmctldHost=node0
AuthType=auth/munge
AuthInfo=socket={folder}/own/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/own
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/own/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
KillWait=10
NodeName=node[0-{last}] CPUs=2 RealMemory=500 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "mount -t tmpfs none /sys/fs/cgroup; "  # of this host alone; slurmd asks for one though nothing uses it
    "mount --bind {folder}/{name} {folder}/own; "  # whose files have the same path on every node
    "munged -F --force -S {folder}/own/munge.sock --key-file={folder}/key --log-file={folder}/own/munge.log "
    "--pid-file={folder}/own/munge.pid --seed-file={folder}/own/seed & sleep 1; "
)


class Slurm:
    """The cluster; commands run on its first node."""

    def __init__(self, nodes: Sequence[Host], folder: Path) -> None:
        self.folder, self.environment = folder, {"SLURM_CONF": str(folder / "slurm.conf")}
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, last=len(nodes) - 1))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (folder / "key").write_bytes(secrets.token_bytes(128))
        for path in (folder, folder / "key"):
            path.chmod(0o700)
        for name in ("state", "own", *(node.name for node in nodes)):
            (folder / name).mkdir()
        self._shells = [node.start(["sh"], stdin=True, **self.environment) for node in nodes]
        for shell, node in zip(self._shells, nodes, strict=True):
            first = "slurmctld -D & sleep 1; " if node is nodes[0] else ""
            self._tell(f"{NODE.format(folder=folder, name=node.name)}{first}slurmd -D & ", shell)

    def _tell(self, line: str, shell: "subprocess.Popen[str] | None" = None) -> None:
        shell = shell or self._shells[0]
        assert shell.stdin
        shell.stdin.write(line + "\n")
        shell.stdin.flush()

    def run(self, command: Sequence[str], seconds: float = 60) -> tuple[int, str]:
        """Exit code and output of a command."""
        said, code = self.folder / "said", self.folder / "code"
        code.unlink(missing_ok=True)
        self._tell(f"( {' '.join(command)} ) > {said} 2>&1 < /dev/null; echo $? > {code}.new; mv {code}.new {code}")
        end = time.monotonic() + seconds
        while not code.exists():
            assert time.monotonic() < end, f"{command} hangs: {self.logs()}"
            time.sleep(0.1)
        return int(code.read_text()), said.read_text()

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.rglob("*.log"))


@contextlib.contextmanager
def slurm(count: int = 1) -> Iterator[Slurm]:
    """A cluster of so many nodes that take jobs. Needs root."""
    assert os.geteuid() == 0, "the daemons need root"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, hosts(count) as nodes:
        cluster = Slurm(nodes, Path(folder))
        end = time.monotonic() + 60
        while set((said := cluster.run(["sinfo", "-h", "-N", "-o", "%T"])[1]).split()) != {"idle"}:
            assert time.monotonic() < end, said + cluster.logs()
            time.sleep(1)
        yield cluster
