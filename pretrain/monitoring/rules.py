"""The rules of a verdict: what each reads of a run's figures, its evidence, and the setting to change."""

import math
from typing import Literal, NamedTuple

from pretrain.method.diagnostics import MONITOR_EVERY
from pretrain.monitoring.run_statistics import BEGIN, RECENT, Figures, change

Name = Literal[
    "learning", "not learning", "uniform collapse", "point collapse", "rank collapse", "starved", "diverging"
]


class Verdict(NamedTuple):
    """One of the names, the figures it rests on, and what to change ("" where nothing is to be)."""

    name: Name
    evidence: str
    remedy: str = ""

    @property
    def collapsed(self) -> bool:
        """Whether nothing that comes after is worth its hours: what `--on_collapse stop` ends a run for."""
        return self.name in ("uniform collapse", "point collapse", "rank collapse", "diverging")

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}" + (f"; {self.remedy}" if self.remedy else "")


GROWTH = 1.25
"""Growth of the weights' length within RECENT steps that no sound learning rate brings: at 1e-3 it was at most 1.01 in
the first 100 steps, at 1e-1 1.31 to 1.36 at steps 20 to 30 and 2 at 50, while the loss still fell."""
RISE = 0.1
"""Rise of the loss over its start, as a share of ln K, that is no noise (0.004 with 32 crops)."""


def diverging(run: Figures) -> Verdict | None:
    """Weights that explode, or a loss that climbs above both its start and a uniform guess."""
    growth, spikes = change(run.recent, "weight_norm"), run.recent[-1]["gradient_norm"]
    if growth < GROWTH and run.loss < max(run.loss_first, run.ln_k) + max(RISE * run.ln_k, 4 * run.noise):
        return None
    return Verdict(
        "diverging",
        f"the weights grew {growth:.2f} times in {len(run.recent) - 1} steps, the loss went from {run.loss_first:.2f} "
        f"to {run.loss:.2f} (ln K is {run.ln_k:.2f}), the gradient norm is {spikes:.2g} at learning rate {run.lr:.2g}",
        "lower --optim.lr ten times",
    )


POINT = 0.5
"""Share of its first value below which the entropy of the mean target is a point collapse. Mean centering that worked
(temperature 0.04) went down to 0.73 and stayed; without centering it passed 0.5 at steps 38 to 110 on its way to 0."""


def point_collapse(run: Figures) -> Verdict | None:
    """All images under one prototype, or on the way there; the weights of --init may bring it along."""
    if run.whole > max(POINT * run.whole_first, min(UNIFORM, run.ln_k / 10)):
        return None
    return Verdict(
        "point collapse",
        f"the targets use {math.exp(run.whole):.1f} prototypes, {math.exp(run.whole_first):.0f} at the start "
        f"(entropy of their mean {run.whole:.2f} nats, {run.whole_first:.2f} at the start)",
        "use --method.centering sinkhorn, or --method.center_momentum 0.9 and a higher --method.teacher_temperature "
        f"(at this step {run.temperature:g})",
    )


UNIFORM = 0.2
"""Nats that targets must tell images apart by; of a tenth of ln K if K is tiny. Untrained heads gave 2.2 at a teacher
temperature of 0.02, 1.1 at 0.04 and 0.19 at 0.1, the student's, where they fell to 0.08 in 100 steps."""


def uniform_collapse(run: Figures) -> Verdict | None:
    """Targets that say the same of every image: each is near uniform, and the student learns just that."""
    if run.apart > min(UNIFORM, run.ln_k / 10) or run.target < 0.5 * run.ln_k:
        return None
    return Verdict(
        "uniform collapse",
        f"the targets tell images apart by {run.apart:.2f} nats, and each has {run.target / run.ln_k:.0%} of the "
        f"entropy of a uniform one (loss / ln K {run.loss / run.ln_k:.3f})",
        f"lower --method.teacher_temperature (at this step {run.temperature:g}), well below the student's",
    )


RANK = 0.5
"""Share of the first RankMe that is a rank collapse. Sound runs kept 0.81 of it or more; with 2 prototypes and no KoLeo
a ViT's passed 0.5 at step 40 on its way to 0.2, and mambaout_femto's at a learning rate of 5e-2 at step 30 to 0.1."""


def rank_collapse(run: Figures) -> Verdict | None:
    """Features that use few directions of those that even random weights use."""
    if run.rank > RANK * run.rank_first:
        return None
    return Verdict(
        "rank collapse",
        f"the features' RankMe is {run.rank:.1f}, {run.rank_first:.1f} at the start, and "
        f"{change(run.recent, 'rankme'):.2f} times that of {len(run.recent) - 1} steps before",
        "raise --method.koleo or --method.prototypes, or lower --optim.lr",
    )


FROZEN = 0.1
"""How often, at least, a whole run's schedule must let the teacher take in its student: 0.2 in `smoke`, 5 in `demo`."""


def frozen(run: Figures) -> Verdict | None:
    """A teacher that stays the random network it was: its student learns to repeat noise, and its loss falls."""
    moves = run.total * (1 - run.momentum)
    if moves > FROZEN or run.lost:  # the momentum of the steps before may have been lower
        return None
    return Verdict(
        "not learning",
        f"the teacher takes in its student {moves:.2g} times in the whole run (EMA momentum {run.momentum:g} at least)",
        "lower --method.ema_start",
    )


STILL = 1e-3
"""Share of the weights' length by which the whole run must move them, at the pace so far: that of a warm-up, which in
long runs is far below what follows. At step 10 sound runs were on their way to 0.2 (60 steps at 1e-3) and more; a
learning rate of 1e-7 to 5e-5 and 1e-4, 1e-5 to 0.014."""


def still(run: Figures) -> Verdict | None:
    """Weights that hardly move: known long before a trend is, as long as nothing can have been learnt.

    A backbone that waited for its head is judged by the steps after that, as long as RECENT steps reach back to it.
    """
    early = run.step <= max(FEWEST, EARLY * run.total)
    if run.moves > STILL or run.lost or not (early or run.woke):
        return None
    return Verdict(
        "not learning",
        f"at this pace the whole run moves the weights by {run.moves:.2g} of their length (learning rate {run.lr:.2g})",
        "raise --optim.lr (with --init also --optim.init_lr), or --steps",
    )


STARVED = 0.25
"""Share of the time spent waiting for data. At most 0.11 with one worker on two cores that six runs shared."""


def starved(run: Figures) -> Verdict | None:
    """Training that waits for its data; a run's first step, when workers start, is not counted."""
    times = sorted((line["images_per_s"] and 1 / line["images_per_s"], line["data_wait"]) for line in run.recent)
    times.pop()  # one long wait is an accident; every tenth step, when a loader waits for each of its batches, is none
    if len(times) < BEGIN:
        return None
    waited = sum(time * share for time, share in times) / sum(time for time, _ in times)
    if waited < STARVED:
        return None
    return Verdict(
        "starved",
        f"{waited:.0%} of the time is spent waiting for data, at {run.recent[-1]['images_per_s']:.0f} crops/s",
        "raise --data.workers, or bring the shards nearer (--data.cache)",
    )


LEARNT = 0.01
"""Nats that must be learnt, and four times the noise of that, to be called learning; what is within the noise is not
learning. Sound runs had learnt 0.02 to 0.14 in the first 5 % of 1,000 or 2,000 steps; at a learning rate of 1e-7 it
stayed at -0.06."""


def learning(run: Figures) -> Verdict | None:
    """A student that predicts more of its targets than it did at first."""
    if run.learnt < max(LEARNT, 4 * run.noise):
        return None
    return Verdict("learning", run.learnt_so_far())


KEPT = 0.5
"""Share of what the weights of --init predict that a run must keep. It is lost within a few steps or not at all."""


def forgetting(run: Figures) -> Verdict | None:
    """Weights that knew something, and that the run destroys."""
    if not run.given or run.gain > KEPT * run.gain_first or run.learnt > -max(LEARNT, 4 * run.noise):
        return None
    return Verdict(
        "not learning",
        f"the weights that it began with are being lost: {run.learnt_so_far()}",
        "lower --optim.lr, or --optim.init_lr if they are those of --init",
    )


BELOW = 0.01
"""Balanced accuracy below its start from which on a run's k-NN has fallen: the error of a score of 2,000 crops."""


def below_start(run: Figures) -> Verdict | None:
    """Weights of --init that know less by k-NN than they did."""
    if run.knn > run.knn_start - BELOW:
        return None
    return Verdict(
        "not learning",
        f"k-NN is {run.knn:.3f}, and {run.knn_start:.3f} with the weights of --init; the best so far are kept",
        "lower --optim.init_lr, or go on if it rises from score to score",
    )


EARLY = 0.05
"""Share of a run by which it must learn; before, only what is certain is said."""
FEWEST = RECENT
"""Steps before `not learning` is said, in which a slope can be seen. At 30, while the learning rate still rose, and at
40 in batches of 16, it was said of sound runs."""


def not_learning(run: Figures) -> Verdict | None:
    """A student that by now should have learnt something, and is not about to.

    One that knew something at the start may take longer: sound runs from weights of the same crops stayed level, at 0.6
    nats, for 40 steps.
    """
    if run.step + MONITOR_EVERY < run.total * EARLY or run.step < FEWEST or run.learnt > run.noise:
        return None
    if run.rising or run.given or not math.isfinite(run.noise):
        return None
    return Verdict(
        "not learning",
        run.learnt_so_far(),
        f"raise --optim.lr (at this step {run.lr:.2g}), or look at views.png whether views still show the same tooth",
    )


RULES = (
    diverging,
    point_collapse,
    uniform_collapse,
    rank_collapse,
    frozen,
    still,
    forgetting,
    below_start,
    starved,
    learning,
    not_learning,
)
"""The worst first: the first that finds something is the verdict."""
