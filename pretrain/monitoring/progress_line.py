"""How a run stands, in one line: kept up to date on a terminal, written now and then to a log file."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import IO, Any

from tqdm import tqdm

COLUMNS = 80
"""Most columns of the line."""
LINE_EVERY = 60.0
"""Seconds between two lines in a log file: 1,440 a day."""
RECENT = 20
"""Last steps that speed and time left are taken from."""


class Progress:
    """The display of one run of `total` steps of which `done` are; `log` is where it goes, if `shown`."""

    def __init__(
        self,
        total: int,
        done: int,
        shown: bool = True,
        log: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._shown, self._clock = total, shown, clock
        self._log = log or sys.stderr
        self._lines: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._times = deque([clock()], maxlen=RECENT + 1)
        self._rank: float | None = None
        self._told = -LINE_EVERY
        on_terminal = shown and self._log.isatty()
        self._bar = tqdm(total=total, initial=done, bar_format="{desc}", file=self._log) if on_terminal else None

    def step(self, line: dict[str, Any], verdict: str | None) -> None:
        """Take in a step's metrics, and the name of the verdict on the run if there is one."""
        now = self._clock()
        self._lines.append(line)
        self._times.append(now)
        self._rank = line.get("rankme", self._rank)
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.set_description_str(self._words(verdict), refresh=False)
            self._bar.update()
        elif now - self._told >= LINE_EVERY or line["step"] + 1 == self._total:
            self._told = now
            print(self._words(verdict), file=self._log, flush=True)

    def close(self) -> None:
        """Leave the terminal's last line as it is."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def _words(self, verdict: str | None) -> str:
        """The line, of at most COLUMNS and the terminal's width; what matters least goes first."""
        line, count = self._lines[-1], len(self._lines)
        done = line["step"] + 1
        seconds = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        speed = count / sum(1 / max(one["images_per_s"], 1e-9) for one in self._lines)
        waited = sum(one["data_wait"] / max(one["images_per_s"], 1e-9) for one in self._lines) * speed / count
        parts = {
            "step": f"{done}/{self._total}",
            "loss": f"loss/lnK {line['loss_over_ln_k']:.3f}",
            "verdict": verdict or (f"RankMe {self._rank:.0f}" if self._rank is not None else ""),
            "speed": f"{speed:.0f} crops/s" if speed >= 9.5 else f"{speed:.1f} crops/s",
            "wait": f"wait {waited:.0%}",
            "left": f"{_duration((self._total - done) * seconds)} left",
        }
        width = min(COLUMNS, shutil.get_terminal_size().columns - 1 if self._bar is not None else COLUMNS)
        for least in ("", "wait", "speed", "verdict", "left", "loss"):
            parts[least] = ""
            words = "  ".join(part for part in parts.values() if part)
            if len(words) <= width:
                break
        return words[:width]


def _duration(seconds: float) -> str:
    """`4:05`, `2:04:05` or `3d 2h`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
