"""The released projection head: features [B, C] to prototype logits [B, K]."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Linear map without bias whose rows are `g * v / |v|` (weight normalisation, Salimans & Kingma 2016, eq. 2).

    The gain `weight_g` [out, 1] stays at 1, so logits are cosines. `torch.nn.utils.weight_norm` is deprecated and
    cannot be deep-copied, and its parametrized successor renames the keys; this module keeps the released ones.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=False)
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class proj_head(nn.Module):
    """(Linear, GELU, BatchNorm) x (nlayers - 1), L2 normalisation, weight-normed Linear: [B, in_dim] -> [B, out_dim].

    Named and keyed as in the release (`mlp.0.weight`, `mlp.2.*`, ..., `last_layer.weight_g|v`); DINO's head (Caron et
    al. 2021, appendix C) with the BatchNorm after the activation. BatchNorm normalises by the batch it is given: called
    on global and local crops together, it lets the output tell them apart (see Network.forward).
    """

    def __init__(
        self, in_dim: int, out_dim: int = 256, hidden_dim: int = 256, bottleneck_dim: int = 256, nlayers: int = 3
    ) -> None:
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (nlayers - 2) + [bottleneck_dim]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            linear = nn.Linear(narrow, wide, bias=False)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            layers += [linear, nn.GELU(), nn.BatchNorm1d(wide)]
        self.mlp = nn.Sequential(*layers)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_dim] -> [B, out_dim] float32 cosines.

        The last two operations run in float32 even under autocast: bf16 keeps 8 bits, and an error of 1/256 in a
        cosine is 0.1 in the exponent at a teacher temperature of 0.04.
        """
        x = self.mlp(features)
        with torch.autocast(x.device.type, enabled=False):
            return self.last_layer(F.normalize(x.float(), dim=-1, eps=1e-8))
