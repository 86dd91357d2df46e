"""Whether a run learns, in plain words: a verdict on its metrics lines, with the figures and the setting to change."""

from collections import deque
from collections.abc import Iterable, Sequence

from pretrain.method.diagnostics import MONITOR_EVERY
from pretrain.monitoring.rules import RULES, Verdict
from pretrain.monitoring.run_statistics import BEGIN, RECENT, Figures, Line, change

READ = (
    *("loss", "loss_over_ln_k", "target_entropy", "target_mean_entropy", "gradient_norm", "images_per_s", "data_wait"),
    *("ema_momentum", "teacher_temperature", "lr"),
)
"""What the rules read of every line; a line without it is damaged."""


class Watch:
    """The lines of one run that verdicts are made of: its first, and its last."""

    def __init__(self, total: int, earlier: Iterable[Line] = ()) -> None:
        self.verdict: Verdict | None = None
        """The last one that could be made."""
        self._total = total
        self._first: list[Line] = []
        self._recent: deque[Line] = deque(maxlen=RECENT + 1)
        self._scored: Line = {}  # the last one with a k-NN score
        for line in earlier:
            self.take(line)

    def take(self, line: Line) -> Line:
        """What is to be added to a step's line: the trend of the rank, and the verdict's name where one is made."""
        if not self._first and "weight_norm" not in line:  # of an older version, or the first lines are lost
            return {}
        if None in line.values() or not all(isinstance(line.get(name), int | float) for name in READ):
            return {}
        if len(self._first) < BEGIN:
            self._first.append(line)
        self._recent.append(line)
        self._scored = line if "knn" in line else self._scored
        if "rankme" not in line:
            return {}
        found = judge(self._first, self._recent, self._total, self._scored)
        self.verdict = found or self.verdict
        trend = {"rankme_trend": change(self._recent, "rankme")}
        return trend | ({"verdict": found.name} if found else {})


def judge(first: Sequence[Line], recent: Sequence[Line], total: int, scored: Line | None = None) -> Verdict | None:
    """The verdict on a run of `total` steps by its `first` lines (BEGIN) and its last (RECENT + 1), the worst first.

    `scored` is the last line with a k-NN score. None while it is too early to tell. A pure function of what is in
    metrics.jsonl, for both kinds of centering.
    """
    if recent[-1]["step"] < MONITOR_EVERY:
        return None
    figures = Figures(first, list(recent), total, scored or {})
    return next((verdict for rule in RULES if (verdict := rule(figures))), None)


def told(lines: Iterable[Line], total: int) -> list[tuple[str, str]]:
    """What was said of a run, for its summary: the last verdict, and the steps at which it had become another."""
    watch = Watch(total)
    said: list[tuple[int, Verdict]] = []
    for line in lines:
        watch.take(line)
        if watch.verdict and (not said or said[-1][1].name != watch.verdict.name):
            said.append((line["step"], watch.verdict))
    if not said or not watch.verdict:
        return [("verdict", f"none: too early, or too little happened, to tell in a run of {total} steps")]
    steps = ", ".join(f"{verdict.name} from step {step}" for step, verdict in said)
    return [("verdict", str(watch.verdict)), ("verdicts", steps)]
