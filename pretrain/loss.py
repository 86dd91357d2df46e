"""The DINO loss (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", eq. 1 and 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def teacher_targets(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Centered and sharpened teacher distributions: softmax((logits - center) / temperature).

    logits [T, B, K], center [K] -> [T, B, K]. Centering alone would drive every image to the uniform distribution,
    sharpening alone to one prototype; together they balance (section 5.3).
    """
    return F.softmax((logits - center) / temperature, dim=-1)


def dino_loss(student_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between each teacher view and every *other* student view, averaged over pairs and images.

    student_logits [S, B, K] with the T global views first, targets [T, B, K] -> scalar:
    the mean over pairs (t, s), s != t, and over b of
    -sum_k targets[t, b, k] * log_softmax(student_logits[s, b] / temperature)_k.
    """
    log_q = F.log_softmax(student_logits / temperature, dim=-1)
    pairs = -torch.einsum("tbk,sbk->ts", targets, log_q) / targets.shape[1]
    same_view = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same_view, 0).sum() / (pairs.numel() - min(pairs.shape))


def updated_center(center: Tensor, batch_mean: Tensor, momentum: float) -> Tensor:
    """momentum * center + (1 - momentum) * mean teacher logits over the global batch (eq. 4); all [K]."""
    return center * momentum + batch_mean * (1 - momentum)


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy in nats of distributions [..., K] -> scalar; ln K is uniform, 0 is one prototype for each image."""
    return torch.special.entr(probabilities).sum(-1).mean()
