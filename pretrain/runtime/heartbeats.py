"""Signs of life between the processes of a run, through the store in which they found each other."""

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil
from torch.distributed import PrefixStore, Store, TCPStore

T = TypeVar("T")

DONE = "done"  # the phase of a process that ended in good order
NOBODY = "nobody ended the run"


@dataclass
class Sign:
    """What one process last told of itself."""

    pid: int
    node: str
    machine: str
    tick: int = 0
    step: int = 0
    phase: str = "setting up"
    still: float = 0.0
    """Seconds for which step and phase have not changed."""
    workers: str = ""
    """Its data workers and how they fare, told when it has waited for them for long."""


@cache
def machine() -> str:
    """Equal for two processes only where one sees the other's pid: same boot of a kernel, same pid namespace."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def own_sign() -> Sign:
    """The first sign of this process."""
    return Sign(os.getpid(), platform.node(), machine())


def is_running(pid: int) -> bool:
    """Whether the process is there, and is more than a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Peers:
    """The last sign of every process, how long each has been silent, and the end that one of them declared.

    A connection of its own: the process group's may be blocked in a wait for hours. Every method but the constructor
    may block for ever where the store's host (torchrun, or rank 0 without it) hangs, and raises RuntimeError where
    that host is gone, so call them from a thread that nothing waits for.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.signs: dict[int, Sign] = {}
        self.read_at = time.monotonic()
        self.silent = dict.fromkeys(range(ranks), 0.0)
        """Seconds without a new sign, counted only while the store answered."""
        self.dead: set[int] = set()
        """Those on this machine that are gone without a last word."""
        self.agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        """Whether torchrun holds the store; else rank 0 does."""
        self.hosts = rank == 0 and not self.agent

    def connect(self, timeout: float) -> None:
        """Find the store. Raises RuntimeError when it is not there within `timeout` seconds."""
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=self.hosts,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,  # rank 0's process group serves from the same port
        )
        # torchrun's store outlives a restart; rank 0's is new, and nodes may count their restarts differently.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if self.agent else "0"
        self._store: Store = PrefixStore(f"peers/{attempt}", store)
        self._store.compare_set("end", "", NOBODY)
        self.read_at = time.monotonic()

    def exchange(self, sign: Sign, longest: float) -> dict[str, Any] | None:
        """Publish `sign`, read everyone's; the declared end, if there is one.

        At most `longest` seconds count as silence: this process may have been suspended, and the others not.
        """
        gone = self.gone()  # before reading, so that the last word of one that is gone is read
        self._store.set(str(self.rank), json.dumps(asdict(sign)))
        present = [rank for rank in range(self.ranks) if rank in self.signs or self._store.check([str(rank)])]
        *texts, end = self._store.multi_get([*map(str, present), "end"])
        now = time.monotonic()
        passed, self.read_at = min(now - self.read_at, longest), now
        heard = {rank: Sign(**json.loads(text)) for rank, text in zip(present, texts, strict=True)}
        for rank in range(self.ranks):
            self.silent[rank] = 0.0 if self.signs.get(rank) != heard.get(rank) else self.silent[rank] + passed
        self.signs = heard
        self.dead = {rank for rank in gone if heard[rank].phase != DONE}
        return None if end.decode() == NOBODY else json.loads(end)

    def wait_for_all(self, sign: Sign, period: float) -> None:
        """Return once every process is done."""
        while any(other.phase != DONE for other in self.signs.values()):
            time.sleep(period / 4)
            self.exchange(sign, period)

    def declare(self, end: dict[str, Any]) -> dict[str, Any]:
        """Declare how the run ends; what holds is what came first, and is returned."""
        return json.loads(self._store.compare_set("end", NOBODY, json.dumps(end)))

    def gone(self) -> set[int]:
        """Those on this machine whose process is no more."""
        here = {rank: sign for rank, sign in self.signs.items() if sign.machine == machine()}
        return {rank for rank, sign in here.items() if sign.phase != DONE and not is_running(sign.pid)}


def within(seconds: float, work: Callable[[], T], otherwise: T) -> T:
    """What `work` returns, or `otherwise` if it fails or takes longer (it is left to itself then)."""
    outcome = [otherwise]

    def attempt() -> None:
        with suppress(Exception):
            outcome[0] = work()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0]
