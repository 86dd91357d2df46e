"""Asking a run to stop: by a signal, by a file, or by the death of what launched it."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import psutil

LAUNCHER = os.getppid()  # as this process begins
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def _launched() -> bool:
    """Whether the parent is accelerate's launcher or torchrun; both leave their processes running when killed."""
    try:
        command = " ".join(psutil.Process(LAUNCHER).cmdline())
    except psutil.Error:
        return False
    return any(name in command for name in ("accelerate", "torchrun", "torch.distributed"))


LAUNCHED = _launched()


def launcher_is_gone() -> bool:
    """Whether this process outlived its launcher: nobody would restart or stop it any more."""
    return LAUNCHED and os.getppid() != LAUNCHER


class StopSignals:
    """While active, TERM, INT and USR1 set `asked`; `now` is called at once for one that will not wait.

    Those are a signal that comes while nobody would look at `asked` (`patient` is False), and INT or TERM after INT: a
    second Ctrl-C, which torchrun passes on to its processes as TERM.

    A thread listens, not the main thread, which may be deep in a collective for ever: the interpreter's own handler in
    C writes a signal's number to a socket, whatever the main thread does.
    """

    def __init__(self, now: Callable[[], object]) -> None:
        self.asked = False
        self.patient = False
        self._now = now
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_deaf)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, _nothing)
        threading.Thread(target=self._listen, name="stop signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._writer.close()  # which ends the thread

    def _listen(self) -> None:
        while number := self._reader.recv(1):
            if number[0] in SIGNALS:
                self._take(number[0])
        self._reader.close()

    def _take(self, number: int) -> None:
        again = self._interrupted and number in (signal.SIGINT, signal.SIGTERM)
        self._interrupted |= number == signal.SIGINT
        self.asked = True
        if again or not self.patient:
            self._now()


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler, so that the signal neither ends the process nor is ignored."""


def _deaf() -> None:
    # A signal to a forked data worker is not one to this process, which shares its socket.
    signal.set_wakeup_fd(-1)
