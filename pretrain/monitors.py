"""What tells learning from collapse: read together, not one by one."""

import torch
from torch import Tensor

from pretrain.loss import entropy


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
def step_monitors(teacher_logits: Tensor, student_logits: Tensor, temperatures: tuple[float, float]) -> Tensor:
    """[3] on the device: entropies in nats of a teacher view, of the teacher's mean over all views, of a student view.

    logits [V, B, K], temperatures of teacher and student. The teacher is taken as it is, before its targets are
    balanced: balanced targets look healthy whatever it says. Both its entropies near ln K is a uniform collapse, that
    of the mean near 0 a point collapse (one prototype for all); learning is a low first and a high second. Still on
    the device, so that a step waits for it only once.
    """
    teacher = torch.softmax(teacher_logits / temperatures[0], dim=-1)
    student = torch.softmax(student_logits / temperatures[1], dim=-1)
    return torch.stack([entropy(teacher), entropy(teacher.mean((0, 1))), entropy(student)])
