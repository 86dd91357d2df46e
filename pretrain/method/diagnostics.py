"""What tells learning from collapse: read together, not one by one (pretrain/monitoring/run_statistics.py reads
them)."""

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.method.losses import entropy

MONITOR_EVERY = 10
"""Steps between two measurements of what takes more than the step's own numbers: one small SVD."""
ROWS = 512
"""Most features in that SVD: a batch of thousands would cost more than its step and say the same."""


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """Effective rank of features [N, C] (RankMe, Garrido et al. 2023, eq. 1-3).

    exp of the entropy of the singular values divided by their sum: between 1 (all features on a line) and min(N, C).
    Features are centered first, so that a large common mean does not pass for rank 1.
    """
    singular = torch.linalg.svdvals((features - features.mean(0)).float())
    p = singular / singular.sum().clamp_min(1e-12)
    return float(torch.exp(torch.special.entr(p).sum()))


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Spread of features [N, C] on the unit sphere, 0 (all alike) to 1 (as far apart as random directions).

    The root of the summed variances of the channels of unit features; SimSiam (Chen & He 2021, section 4.1) averages
    the channels' standard deviations instead, which says 1 only where all channels take part.
    """
    return float(F.normalize(features.float(), dim=-1).var(0, correction=0).sum().sqrt())


def feature_monitors(features: Tensor) -> dict[str, float]:
    """RankMe and spread of the features [N, C] of a global batch, of at most ROWS of them, evenly taken."""
    chosen = features[:: -(-len(features) // ROWS)]
    return {"rankme": rankme(chosen), "feature_std": feature_std(chosen)}


@torch.no_grad()
def trained_weights(network: nn.Module) -> list[Tensor]:
    """A copy of all weights that are trained: 30 MB of starnet_s4, 110 of ConvNeXtV2."""
    return [p.detach().clone() for p in network.parameters() if p.requires_grad]


@torch.no_grad()
def weight_monitors(network: nn.Module, before: list[Tensor]) -> dict[str, float]:
    """Length of all trained weights as one vector, and that of their change since `before` as a share of it.

    The length explodes where the learning rate is too high; where it is too low the change is next to nothing.
    """
    after: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
    length, change = (torch.stack(torch._foreach_norm(ts)).norm() for ts in (after, torch._foreach_sub(after, before)))
    return {"weight_norm": float(length), "update_ratio": float(change / length.clamp_min(1e-12))}


def memory_bytes(device: torch.device) -> int:
    """The most GPU memory this process has held; on a CPU what it and its data workers hold now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    process = psutil.Process()
    return process.memory_info().rss + sum(child.memory_full_info().uss for child in process.children())


VIEW_MONITORS = ("teacher_entropy", "target_entropy", "student_entropy")
"""What `step_monitors` returns of a view."""
MEAN_MONITORS = ("teacher_mean_entropy", "target_mean_entropy")
"""What `mean_entropies` makes of the mean over all views."""


@torch.no_grad()
def step_monitors(
    teacher_logits: Tensor, student_logits: Tensor, targets: Tensor, temperatures: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Entropies [3] in nats of a view, as VIEW_MONITORS, and the mean distributions [2, K] of teacher and targets.

    logits and targets [V, B, K] of this process, temperatures of teacher and student. The teacher is taken as it is,
    and once more as the targets that centering or Sinkhorn-Knopp makes of it. The means of all ranks are those of the
    global batch, as the entropy of a rank's mean, of fewer views, is not. Still on the device, so that a step waits
    for it only once.
    """
    teacher = torch.softmax(teacher_logits / temperatures[0], dim=-1)
    student = torch.softmax(student_logits / temperatures[1], dim=-1)
    views = torch.stack([entropy(teacher), entropy(targets), entropy(student)])
    return views, torch.stack([teacher.mean((0, 1)), targets.mean((0, 1))])


def mean_entropies(means: Tensor) -> Tensor:
    """Entropies [2] in nats, as MEAN_MONITORS, of the mean distributions [2, K] over the global batch.

    What the targets tell images apart by is that of their mean less that of a view: 0 if all are uniform, and 0 if all
    are one prototype.
    """
    return torch.special.entr(means).sum(-1)
