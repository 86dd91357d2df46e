"""The two networks of the method: the student learns by gradient, the teacher is its moving average."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.released_backbones import release_of
from pretrain.config.schema import Config
from pretrain.models.backbones import Backbone, fitting_backbone, freeze_unused
from pretrain.models.depthwise_conv import speed_up
from pretrain.models.projection_head import proj_head


class Network(nn.Module):
    """Backbone and projection head; student and teacher are two of these.

    With `freeze_batchnorm` the backbone's BatchNorm normalizes by its running statistics and keeps them, in training
    too; its scale and shift still learn.
    """

    def __init__(self, backbone: Backbone, head: proj_head, freeze_batchnorm: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.proj_head = head
        self.freeze_batchnorm = freeze_batchnorm

    def train(self, mode: bool = True) -> "Network":
        """Set training mode, in which a frozen BatchNorm stays in evaluation mode."""
        super().train(mode)
        for norm in batchnorms(self.backbone) if self.freeze_batchnorm else ():
            norm.eval()
        return self

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Batches of views, one tensor [N_i, 1, H_i, W_i] per crop size -> features [N, C] and logits [N, K] float32.

        The backbone passes once per size, since sizes cannot be stacked. So does the head, whose BatchNorm then sees
        one crop type at a time. On all crops at once k-NN was alike (demo seeds 0 to 2: 0.598, 0.634, 0.595 per size;
        0.594, 0.638, 0.593), but a linear probe on the output told global from local views at 0.96, for 0.53 per size.
        """
        features = [self.backbone(batch) for batch in views]
        return torch.cat(features).float(), torch.cat([self.proj_head(batch) for batch in features])


def batchnorms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the BatchNorm layers of `model`."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def teacher_of(student: Network) -> Network:
    """A float32 copy of the student that gradients never touch.

    It stays in training mode: its BatchNorm normalizes as the student's does. Running statistics of batches are not
    used; those of an export are measured anew (pretrain/models/batchnorm.py).
    """
    return copy.deepcopy(student).requires_grad_(False).train()


def build_networks(config: Config) -> tuple[Network, Network]:
    """Student and teacher with equal weights, a pure function of the seed (the same on every rank)."""
    torch.manual_seed(config.seed)
    backbone = fitting_backbone(config.backbone, view_sizes(config))
    if not release_of(config.backbone):
        freeze_unused(backbone, config.views.global_size)
    speed_up(backbone)
    head = proj_head(backbone.num_features, config.method.prototypes)
    student = Network(backbone, head, config.freezes_batchnorm)
    student = student.to(memory_format=torch.channels_last).train()  # 0.6 to 1.0 of a convnet's seconds on a CPU
    teacher = teacher_of(student)
    if config.optim.gradient_checkpointing:
        backbone.checkpoint_gradients(config.backbone)
    return student, teacher


def view_sizes(config: Config) -> list[tuple[int, int]]:
    """(H, W) of the views in px: global, and local where there are such."""
    return [config.views.global_size] + [config.views.local_size] * bool(config.views.local_count)


def by_view(outputs: list[tuple[Tensor, Tensor]], images: int) -> tuple[Tensor, Tensor]:
    """Features [V x B, C] and logits [V x B, K] of micro-batches of B `images` -> both [V, B of all, ...]."""
    features, logits = ([x.unflatten(0, (-1, images)) for x in kind] for kind in zip(*outputs, strict=True))
    return torch.cat(features, dim=1), torch.cat(logits, dim=1)


def micro_batches(views: Tensor, images: int, pieces: int) -> list[Tensor]:
    """Views [V x B, 1, H, W] of one size, in pieces of [V x images, 1, H, W]."""
    by_image = views.unflatten(0, (-1, pieces * images))
    return [piece.flatten(0, 1) for piece in by_image.split(images, dim=1)]


@torch.no_grad()
def ema_update(teacher: Network, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, parameters only, in float32 (bf16 would stick)."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def parameter_groups(network: Network, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices and kernels decay, biases and norm parameters (one axis) do not.

    Backbone and head are apart, so that the head can learn alone at first.
    """
    groups: list[dict[str, Any]] = []
    for module in (network.backbone, network.proj_head):
        for decays in (True, False):
            chosen = [p for p in module.parameters() if p.requires_grad and (p.ndim > 1) == decays]
            rates = {"weight_decay": weight_decay if decays else 0.0, "decays": decays}
            groups.append({"params": chosen, "in_backbone": module is network.backbone, **rates})
    return groups
