"""Asking a run to stop: by a signal, or by the death of what launched it."""

import os
import signal
from types import FrameType
from typing import Any

import psutil

LAUNCHER = os.getppid()  # as this process begins


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
    """While active, TERM, INT and USR1 ask for a stop at the next step; a second INT interrupts at once."""

    def __init__(self) -> None:
        self.stop = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True
