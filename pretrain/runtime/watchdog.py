"""What ends a run that cannot go on, or is told to stop: no process of it hangs for longer than a stated time.

Every training process runs three threads: one listens for signals (pretrain.runtime.signals), one watches the progress
of its own training, one exchanges signs of life with its peers (pretrain.runtime.heartbeats). Whichever finds that the
run must end declares that end in the store, all processes obey within two seconds, and one of them tells why in one
line.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, NoReturn, Protocol

import psutil

from pretrain.runtime.heartbeats import DONE, Peers, Sign, machine, own_sign, within
from pretrain.runtime.signals import StopSignals, launcher_is_gone

GRACE = 10.0  # seconds in which the exchange finds out who is dead, after a collective failed
BOUND = 3.0  # seconds for each of the last words: a dead disk or terminal must not keep the process alive
INTERRUPTED = 130  # as shells report a Ctrl-C
WORKER_LOST = re.compile(r"DataLoader worker .*? (is killed by signal: \w+|exited unexpectedly)")  # as torch words it
PEER_LOST = re.compile(r"closed by peer|reset by peer|Broken pipe", re.IGNORECASE)  # as gloo words it


class Trains(Protocol):
    """What is watched: a hang is a `step` and `phase` that do not change."""

    step: int
    phase: str


def kill_workers() -> None:
    """Kill the data workers: the interpreter's end would wait for one that waits for a lost server."""
    for worker in multiprocessing.active_children():
        worker.kill()


class Watchdog:
    """From `with` to its end: listens for signals, watches this process and its peers, and ends them together.

    A process that died on this machine is told within about 2 seconds, one that is silent or makes no progress in
    training within `timeout` + 2. Set-up and scoring may take as long as they like, but not fall silent.
    """

    def __init__(self, timeout: float, phase: str = "setting up") -> None:
        self.timeout = max(1.0, timeout)
        self.period = min(1.0, self.timeout / 5)  # seconds between two looks
        together = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        self.rank, self.ranks = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if together else (0, 1)
        self.signals = StopSignals(self._stop_now)
        self.record: Callable[[Literal["stopped", "failed"]], object] = lambda status: None
        """Called with how the run ended."""
        self.standing: Callable[[], str] = lambda: "the same command starts anew"
        """Called for what the same command would do now."""
        self._sign = own_sign()
        self._sign.phase = phase
        self._trainer: Trains | None = None
        self._peers = Peers(self.rank, self.ranks) if self.ranks > 1 else None
        self._closed = threading.Event()
        self._ending = threading.Lock()

    def __enter__(self) -> "Watchdog":
        self.signals.__enter__()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        if self._peers:
            threading.Thread(target=self._exchange, args=[self._peers], name="peers", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self.signals.__exit__()

    @contextmanager
    def training(self, trainer: Trains) -> Iterator[StopSignals]:
        """While active, a hang of `trainer` ends the run, and a signal only asks for a stop."""
        self._trainer, self.signals.patient = trainer, True
        try:
            yield self.signals
        finally:
            self._trainer = None

    def leave(self) -> None:
        """Tell the peers that this process ends in good order: from now on each goes its own way."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._sign.phase = DONE
        if peers := self._peers:
            self._sign.tick += 1
            within(BOUND, lambda: peers.exchange(self._sign, self.period), None)
            if peers.hosts:  # its store must outlast the others' last look
                within(GRACE, lambda: peers.wait_for_all(self._sign, self.period), None)

    def scoring(self) -> None:
        """From now on this process works alone, and a signal ends it at once, as an earlier one does now."""
        self.signals.patient = False
        self._sign.phase = "scoring"
        if self.signals.asked:
            self._stop_now()

    def lost(self) -> NoReturn:
        """A collective failed, as it does for the peers of a dead process: end the run with the name of that one."""
        time.sleep(GRACE)  # the exchange ends this process meanwhile, if it can name anyone
        silent = self._silent(GRACE / 2)
        if silent:
            self._accuse(silent)
        self.end(2, "error: another process of this run has ended; its own error says why")

    def fail(self, line: str) -> NoReturn:
        """End a run on a user's mistake: in order if this is its only process, else as `end` does."""
        if self._peers:
            self.end(2, line)
        within(BOUND, lambda: self.record("failed"), None)
        print(line.rstrip(), file=sys.stderr, flush=True)
        kill_workers()
        raise SystemExit(2)

    def end(self, code: int, line: str) -> NoReturn:
        """End this process with `code` and, through the store, its peers; one of all tells its line. From any thread.

        Code 0 is a stop that was asked for, another one a failure.
        """
        self._end({"code": code, "line": line}, own=True)

    def _accuse(self, ranks: set[int]) -> NoReturn:
        """End the run because these processes died or give no sign of life; a suspended one would stay for ever."""
        assert self._peers
        signs = self._peers.signs
        for rank in ranks & signs.keys():
            if signs[rank].machine == machine():
                with suppress(OSError):
                    os.kill(signs[rank].pid, signal.SIGKILL)
        self._end({"code": 2, "line": self._accusation(ranks)}, own=True, orphaned=0 in ranks)

    def _end(self, end: dict[str, Any], own: bool, orphaned: bool = False) -> NoReturn:
        while not self._ending.acquire(blocking=False):  # another thread does it
            time.sleep(BOUND)
        peers = self._peers
        tells = own
        if own and peers:
            end |= {"rank": self.rank, "machine": machine()}
            first = within(BOUND, lambda: peers.declare(end), end)
            tells, end = first == end, first
        code = end["code"]
        if tells or (self.rank == 0 and end["machine"] != machine()):  # the user looks at the first machine's screen
            bar = "\n" if self._trainer or self.rank else ""  # the main process may show a progress bar
            within(BOUND, lambda: os.write(2, f"{bar}{end['line'].rstrip()}\n".encode()), 0)
        if self.rank == 0 or (tells and orphaned):  # somebody must, where the main process cannot
            within(BOUND, lambda: self.record("failed" if code else "stopped"), None)
        within(BOUND, sys.stdout.flush, None)
        for child in psutil.Process().children(recursive=True):  # a stopped one would stay for ever
            with suppress(psutil.Error):
                child.kill()
        if peers and peers.hosts:
            time.sleep(2 * self.period)  # the others read the end from this process
        os._exit(code)  # an orderly end would wait for processes that may be waiting for this one

    def _stop_now(self) -> None:
        if self._peers and self._peers.gone():  # torchrun's TERM to the survivors: let the exchange say of whom
            time.sleep(3 * self.period)
        standing = within(BOUND, self.standing, "the same command continues from the last checkpoint")
        if self.signals.patient:
            self.end(INTERRUPTED, f"interrupted; {standing}")
        self.end(0, f"stopped while {self._sign.phase}; {standing}")

    def _watch(self) -> None:
        seen, last = None, time.monotonic()
        while not self._closed.wait(self.period):
            now = time.monotonic()
            passed, last = min(now - last, 3 * self.period), now  # time in which it was suspended does not count
            trainer, sign = self._trainer, self._sign
            progress = trainer and (trainer.step, trainer.phase)
            sign.still = sign.still + passed if progress and progress == seen else 0.0
            if progress:
                sign.step, sign.phase = progress
            seen = progress
            sign.workers = workers() if sign.still > self.timeout / 2 and "data" in sign.phase else ""
            if sign.still >= self.timeout:
                if silent := self._silent(self.timeout / 2):
                    self._accuse(silent)
                if cut_off := self._cut_off():
                    self._end({"code": 2, "line": cut_off}, own=True, orphaned=True)
                self.end(2, self._verdict())

    def _exchange(self, peers: Peers) -> None:
        while not self._closed.is_set():
            try:
                peers.connect(self.timeout)
                while not self._closed.is_set():
                    self._sign.tick += 1
                    if end := peers.exchange(self._sign, 3 * self.period):
                        self._end(end, own=False)
                    if lost := peers.dead or self._silent(self.timeout):
                        self._accuse(lost)
                    self._closed.wait(self.period)
            except RuntimeError:  # the store does not answer: torchrun may be suspended, its end stops the run anyway
                if not peers.agent and not self._closed.is_set():
                    peers.dead = peers.gone()
                    self._accuse(peers.dead or {0})
                if launcher_is_gone():
                    return

    def _silent(self, seconds: float) -> set[int]:
        """The ranks that gave no sign of life for so long, though they were not done."""
        peers = self._peers
        if not peers:
            return set()
        silent = {rank for rank, silence in peers.silent.items() if silence >= seconds}
        if not peers.agent and time.monotonic() - peers.read_at >= seconds:
            silent = {0}  # whose store does not answer either
        done = {rank for rank, sign in peers.signs.items() if sign.phase == DONE}
        return silent - done - {self.rank}

    def _accusation(self, ranks: set[int]) -> str:
        """The line on processes that died or give no sign of life."""
        peers = self._peers
        assert peers
        told = []
        for rank in sorted(ranks):
            sign, silence = peers.signs.get(rank), f"{max(peers.silent[rank], time.monotonic() - peers.read_at):.0f} s"
            if rank in peers.dead:
                what = "has died"
            else:
                what = f"has not answered for {silence}" if sign else f"did not join within {silence}"
            told.append(f"{self._name(rank, sign)} {what}" + (f", last seen {_place(sign)}" if sign else ""))
        return self._error("; ".join(told))

    def _cut_off(self) -> str:
        """The line on torchrun's store when it does not answer, which is all that is known on this side; or ""."""
        unheard = time.monotonic() - self._peers.read_at if self._peers else 0.0
        if unheard < self.timeout / 2:
            return ""
        store = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        lost = f"has not reached the launcher of rank 0 at {store} for {unheard:.0f} s"
        return self._error(f"{self._name(self.rank, self._sign)} {lost}: that host or the network to it is lost")

    def _verdict(self) -> str:
        """The line on a training that hangs though every process gives signs of life."""
        signs = (dict(self._peers.signs) if self._peers else {}) | {self.rank: self._sign}
        culprits = {rank: sign for rank, sign in signs.items() if _holds_up(rank, sign)}
        since = f"no progress for {self._sign.still:.0f} s"
        if not culprits:
            everyone = "every process" if self.ranks > 1 else self._name(0, self._sign)
            what = "a collective or a device hangs" if self.ranks > 1 else "the device hangs"
            return self._error(f"{since}: {everyone} is {_place(self._sign)}, so {what}")
        told = []
        for rank, sign in sorted(culprits.items()):
            data = f" ({sign.workers}are the shards on a slow or dead disk?)" if "data" in sign.phase else ""
            told.append(f"{self._name(rank, sign)} is {_place(sign)}{data}")
        return self._error(f"{since}: {'; '.join(told)}")

    def _name(self, rank: int, sign: Sign | None) -> str:
        where = f" (pid {sign.pid} on {sign.node})" if sign else ""
        return f"rank {rank} of {self.ranks}{where}" if self.ranks > 1 else f"the run{where}"

    def _error(self, what: str) -> str:
        standing = within(BOUND, self.standing, "the same command continues from the last checkpoint")
        return f"error: {what}; {standing}"


def _place(sign: Sign) -> str:
    return f"{sign.phase} at step {sign.step}" if sign.step else sign.phase


def _holds_up(rank: int, sign: Sign) -> bool:
    """Whether the others may be waiting for this one: all compute together, and the main process saves."""
    return "data" in sign.phase or (sign.phase == "saving" and rank == 0)


def workers() -> str:
    """The data workers of this process and how they fare, as `data workers: pid 17 stopped; `, or nothing.

    Not through multiprocessing, which would reap a dead one before torch's DataLoader notices.
    """
    told = []
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                told.append(f"pid {child.pid} {child.status()}")
    return f"data workers: {', '.join(told)}; " if told else ""
