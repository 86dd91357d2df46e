"""Started by test_downstream_processes.py in two processes: a command whose first process hangs or dies in packing."""

import os
import signal
import sys

from downstream import __main__ as command
from downstream.data import sources


def struck(_settings: object) -> None:
    os.kill(os.getpid(), getattr(signal, os.environ["STRUCK_BY"]))


if __name__ == "__main__":
    sources.pack = struck
    command.SILENCE = 4.0
    command.main(sys.argv[1:])
