"""A run's figures in TensorBoard and the other trackers that Accelerate knows, beside metrics.jsonl."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tqdm import tqdm

from pretrain.config.tracker_names import TrackerError

PROJECT = "tooth-foundations"  # not the run's name: that may be a clinic's, and many trackers are on the internet
TAKE_TEXT = ("tensorboard", "comet_ml")  # by Accelerate's classes; others drop strings or fail at them


class Trackers:
    """The trackers of one try of a run, on the main process.

    One that fails is told and given up, for a tracker may not cost a run; metrics.jsonl has every step.
    """

    def __init__(self, accelerator: Accelerator, settings: dict[str, Any], start: int) -> None:
        """Begin at step `start`: what an earlier try told TensorBoard of it and later steps is void.

        `settings` go to the trackers, so no path may be in them. Raises TrackerError if one does not start.
        """
        self._accelerator = accelerator
        shown = {k: v if isinstance(v, bool | int | float | str | None) else str(v) for k, v in settings.items()}
        try:
            accelerator.init_trackers(PROJECT, shown, {"tensorboard": {"purge_step": start}})
        except Exception as error:  # of packages that are not ours
            raise TrackerError(
                f"a tracker of --log_with does not start ({_told(error)}); mend it or leave it out"
            ) from error

    def log(self, line: dict[str, Any]) -> None:
        """Hand over a step's figures under their names in metrics.jsonl; lists, such as source_counts, stay there."""
        figures = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        texts = {k: v for k, v in line.items() if isinstance(v, str)}

        def tell(tracker: GeneralTracker) -> None:
            tracker.log(figures | texts if tracker.name in TAKE_TEXT else figures, step=line["step"])

        self._each(tell, f"step {line['step']}")

    def close(self) -> None:
        """Let them write or send what they still hold."""
        self._each(lambda tracker: tracker.finish(), "end")

    def _each(self, tell: Callable[[GeneralTracker], None], moment: str) -> None:
        """One by one, since `Accelerator.log` ends at the first that fails and has one set of values for all."""
        for tracker in [*self._accelerator.trackers]:
            try:
                tell(tracker)
            except Exception as error:  # of packages that are not ours
                self._accelerator.trackers.remove(tracker)
                tqdm.write(
                    f"warning: {tracker.name} failed at {moment} ({_told(error)}) and gets no more until the run is "
                    "continued; the run goes on, and metrics.jsonl has every step"
                )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
