"""The losses: DINO's cross-entropy with its two ways to balance the targets, and KoLeo's spread of the features.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (DINO); Caron et al. 2020,
"Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV); Sablayrolles et al. 2019,
"Spreading vectors for similarity search" (KoLeo).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def centered_targets(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Centered and sharpened teacher distributions: softmax((logits - center) / temperature) (DINO, eq. 1 and 4).

    logits [..., K], center [K] -> [..., K]. Centering alone would drive every image to the uniform distribution,
    sharpening alone to one prototype; together they balance (section 5.3).
    """
    return F.softmax((logits - center) / temperature, dim=-1)


def sinkhorn_targets(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Teacher distributions that use the prototypes about equally often: Sinkhorn-Knopp (SwAV, eq. 3, section 3.1).

    logits [..., K] of the whole global batch -> [..., K]. exp(logits / temperature) is scaled in turn so that all
    prototypes have the same total over the batch, and last that all views have the total 1; in logarithms, so that
    nothing underflows.
    """
    log_q = logits.flatten(0, -2) / temperature
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp().view_as(logits)


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


SHORTEST = 1e-2
"""Length of features below which KoLeo takes them as they are: one of no length has no direction to be pushed in, and a
gradient of 6e10 for the attempt would leave the others none after clipping."""


def koleo_loss(features: Tensor, everyones: Tensor, first: int) -> Tensor:
    """-mean log distance to the nearest other image on the unit sphere (KoLeo, eq. 3): spreads features evenly.

    features [V, B, C] of this rank's views; everyones [V, R x B, C], without gradient, the same of all ranks, where
    this rank's begin at row `first` -> scalar. Each feature is pushed from its neighbour and not the neighbour from
    it, so that the mean of the ranks' gradients is that of one process with the global batch. The small constant
    bounds the push between duplicates, and SHORTEST that of a feature of no length. Raises nothing; wants at least two
    images in the global batch.
    """
    own, others = (F.normalize(f, dim=-1, eps=SHORTEST) for f in (features, everyones))
    similarity = own.detach() @ others.mT
    rows = torch.arange(own.shape[1], device=own.device)
    similarity[:, rows, first + rows] = -2  # nobody is one's own neighbour
    nearest = similarity.argmax(-1, keepdim=True).expand(-1, -1, own.shape[-1])
    distance = (own - others.gather(1, nearest)).norm(dim=-1)
    return -torch.log(distance + 1e-3).mean()


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy in nats of distributions [..., K] -> scalar; ln K is uniform, 0 is one prototype for each image."""
    return torch.special.entr(probabilities).sum(-1).mean()
