"""The command: accelerate launch pretrain.py (see --help)."""

import os
import signal


def _end(number: int, _frame: object) -> None:
    os.write(2, b"ended before the run began\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, _end)  # the imports take seconds; then the run listens for itself

    from pretrain.__main__ import main

    main()
