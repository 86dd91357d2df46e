"""A real Slurm (slurmctld, slurmd, munge) in one host of tests/hosts.py: its network is that host's loopback."""

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hosts import Host, hosts

CONFIG = """
ClusterName=here
SlurmctldHost=node0
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
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
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
KillWait=10
NodeName=node0 CPUs=2 RealMemory=500 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
DAEMONS = (
    "mount -t tmpfs none /sys/fs/cgroup; "  # of this host alone; slurmd asks for one though nothing uses it
    "munged -F --force -S {folder}/munge.sock --key-file={folder}/key --log-file={folder}/munge.log "
    "--pid-file={folder}/munge.pid --seed-file={folder}/seed & sleep 1; slurmctld -D & sleep 1; slurmd -D & "
)


class Slurm:
    """The cluster; commands run beside its daemons."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.folder, self.environment = folder, {"SLURM_CONF": str(folder / "slurm.conf")}
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (folder / "key").write_bytes(secrets.token_bytes(128))
        for path in (folder, folder / "key"):
            path.chmod(0o700)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        self._shell = host.start(["sh"], stdin=True, **self.environment)
        self._tell(DAEMONS.format(folder=folder))

    def _tell(self, line: str) -> None:
        assert self._shell.stdin
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()

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
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    """A cluster of one node that takes jobs. Needs root."""
    assert os.geteuid() == 0, "the daemons need root"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, hosts(1) as (host,):
        cluster = Slurm(host, Path(folder))
        end = time.monotonic() + 60
        while "idle" not in (said := cluster.run(["sinfo", "-h", "-o", "%T"])[1]):
            assert time.monotonic() < end, said + cluster.logs()
            time.sleep(1)
        yield cluster
