"""Check the names of trackers that `--log_with` gives."""

from collections.abc import Sequence

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from data_shards.errors import Mistake


class TrackerError(Mistake):
    """A tracker that nobody knows, that is not installed or that does not start."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise TrackerError for a tracker that Accelerate does not know or whose package it does not find."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrackerError(
                f"log_with: there is no tracker '{name}'; valid: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in map(str, get_available_trackers()):
            raise TrackerError(
                f"log_with: {name} is not installed; `pip install {name}`, or leave it out of --log_with"
            )
