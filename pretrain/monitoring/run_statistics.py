"""The figures of a run's lines that a verdict rests on, averaged over its first and its last ones.

Two figures carry most of it, in nats, from entropies of the targets as centering or Sinkhorn-Knopp leaves them. What
the targets tell images apart by is `target_mean_entropy - target_entropy`: 0 where all are uniform, and 0 where all are
one prototype. What the student predicts of it is `target_mean_entropy - loss`: below 0 for one that knows nothing. As
differences they hardly depend on K; what does, as how many prototypes a small batch can show, is compared with the
run's own first steps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from pretrain.method.diagnostics import MONITOR_EVERY

Line = dict[str, Any]
BEGIN = 5
"""First lines of a run, which the later ones are compared with: the learning rate is still near 0."""
RECENT = 5 * MONITOR_EVERY
"""Last lines that weights and ranks are followed over: six measurements."""
NOISY = 20
"""Last lines that losses and entropies are averaged over."""


RISING = 3.0
"""Slope of the gain that is no chance, in deviations of it. That of ViTs was 3.6 to 18 of them before they had learnt
anything, in batches of 16 and 64."""


class Figures:
    """What the rules read: averages over the first and the last lines, losses and entropies in nats."""

    def __init__(self, first: Sequence[Line], recent: list[Line], total: int, scored: Line) -> None:
        self.knn, self.knn_start = scored.get("knn", math.inf), scored.get("knn_start", -math.inf)
        """The last k-NN score, and that of the weights of --init."""
        noisy = recent[-NOISY:] if len(recent) >= 2 * BEGIN else recent[-BEGIN:]
        self.step, self.total = recent[-1]["step"], total
        self.recent = recent
        self.ln_k = next((x["loss"] / x["loss_over_ln_k"] for x in (*first, *recent) if x["loss"]), 1.0)
        self.loss, self.loss_first = (mean(line["loss"] for line in lines) for lines in (noisy, first))
        self.target = mean(line["target_entropy"] for line in noisy)
        self.whole, self.whole_first = (mean(line["target_mean_entropy"] for line in lines) for lines in (noisy, first))
        self.apart = self.whole - self.target
        """What the targets tell images apart by."""
        gains, gains_first = ([x["target_mean_entropy"] - x["loss"] for x in lines] for lines in (noisy, first))
        jumps = [after - before for before, after in pairwise(gains)]  # of which a rise is no part
        one = stdev(jumps) / math.sqrt(2) if len(jumps) > 3 else math.inf
        self.gain, self.noise = mean(gains), one / math.sqrt(len(gains))
        slope, deviation = fitted([x["target_mean_entropy"] - x["loss"] for x in recent])
        self.rising = slope > RISING * one * deviation
        """Whether the gain rises along the last lines."""
        frozen, lost = head_alone(first[0]), first[0]["step"] > 0
        self.lost = lost
        """Whether its first lines are lost."""
        self.given = lost or frozen or gains_first[0] > 4 * one
        """Whether its weights knew something at its first line: those of --init, or of lines that are lost."""
        if self.given and not (lost or frozen):
            gains_first = gains_first[:1]  # a few steps may destroy them
        self.gain_first = mean(gains_first)
        if self.given:
            self.noise = math.hypot(self.noise, one / math.sqrt(len(gains_first)))
        self.rank, self.rank_first = (
            next(x["rankme"] for x in lines if "rankme" in x) for lines in (recent[::-1], first)
        )
        ratios = [line["update_ratio"] for line in (*first, *recent) if "update_ratio" in line and not head_alone(line)]
        self.moves = max(ratios) * total if ratios else math.inf
        """How often the whole run would change the weights by their own length, at its quickest pace so far."""
        self.woke = any(map(head_alone, recent)) and not head_alone(recent[-1])
        """Whether the backbone, in a run from --init, has learnt only for some of the last lines."""
        self.momentum = min(line["ema_momentum"] for line in (*first, *recent))
        self.temperature, self.lr = recent[-1]["teacher_temperature"], recent[-1]["lr"]

    @property
    def learnt(self) -> float:
        """Nats learnt: the gain, or if a small batch shows too few prototypes for it to be above 0, its rise.

        A rise counts as far as the loss is below a uniform guess: it comes too where a student turns uniform, and that
        alone where targets fall to one prototype. Of weights that knew something the rise counts alone.
        """
        if self.given:
            return self.gain - self.gain_first
        return max(self.gain, min(self.ln_k - self.loss, self.gain - self.gain_first))

    def learnt_so_far(self) -> str:
        """The figures of learning, in words."""
        return (
            f"the student predicts {self.gain:.2f} of the {self.apart:.2f} nats that its targets tell images apart by "
            f"({self.gain_first:.2f} at the start; a blind guess has 0); loss / ln K {self.loss / self.ln_k:.3f}, "
            f"RankMe {self.rank:.0f} ({self.rank_first:.0f} at the start)"
        )


def fitted(values: Sequence[float]) -> tuple[float, float]:
    """Slope of the least-squares line through values one step apart, and its deviation where theirs is 1."""
    count = len(values)
    squares = max(count * (count**2 - 1) / 12, 1e-12)  # of the steps' distances from their mean
    slope = sum((step - (count - 1) / 2) * value for step, value in enumerate(values)) / squares
    return slope, 1 / math.sqrt(squares)


def head_alone(line: Line) -> bool:
    """Whether the backbone does not learn yet, in a run from --init; a learning rate of 0 is none of that."""
    return bool(line.get("backbone_lr") == 0 < line["lr"])


def change(lines: Sequence[Line], name: str) -> float:
    """How many times its first value in these lines the last is, of a figure that not every line has."""
    values = [line[name] for line in lines if name in line]
    return values[-1] / max(values[0], 1e-12)
