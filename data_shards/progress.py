"""Progress bars that do not fill a log."""

import sys
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0
"""How often a bar is written where no terminal shows it: a pack of a night leaves some thousand short lines."""


def progress(*args: Any, **options: Any) -> Any:
    """A tqdm bar with these arguments; where standard error is no terminal, it is written every LOG_SECONDS only."""
    return tqdm(*args, mininterval=0.1 if sys.stderr.isatty() else LOG_SECONDS, **options)
