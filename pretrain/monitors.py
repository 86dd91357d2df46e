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
def step_monitors(targets: Tensor, student_logits: Tensor, student_temperature: float, center: Tensor) -> Tensor:
    """[3] on the device: teacher entropy and student entropy in nats, and the center's L2 norm.

    Teacher entropy near ln K is a uniform collapse, near 0 with every image alike a point collapse; one number for each
    step, still on the device, so that a step waits for the device only once.
    """
    student = torch.softmax(student_logits / student_temperature, dim=-1)
    return torch.stack([entropy(targets), entropy(student), center.norm()])
