"""Turn a stem for normalised RGB images into one for our gray images: channels summed, mean and std moved in.

The source network sees x_c = (g - m_c) / s_c on three equal channels, g = pixel / 255. Ours sees y = (g - M) / S.
With g = S y + M, x_c = (S / s_c) y + (M - m_c) / s_c: a factor of the kernels, and a constant that goes into the
convolution's bias, or where it has none is subtracted from the running mean of the BatchNorm after it.
This is exact wherever the kernel sees pixels only. Zeros that pad the border mean the colour M here and m_c there, so
outputs at a padded border differ by the constant's share of the padded taps; nothing differs where m_c = M.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]


class Scaling(NamedTuple):
    """Mean and standard deviation of an input convention, one number per channel, pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return " and ".join("/".join(f"{x:g}" for x in dict.fromkeys(values)) for values in self)


class FoldError(ValueError):
    """A stem whose input convention cannot be moved into its weights; one line."""


class Stem(NamedTuple):
    """A convolution that reads the image, by the name of its module, and the BatchNorm that reads its output."""

    conv: str
    has_bias: bool
    batchnorm: str | None


@torch.no_grad()
def find_stems(model: nn.Module, images: Tensor) -> list[Stem]:
    """Return the convolutions of `model` that read `images` [1, C, H, W] themselves. Raises FoldError for others.

    A linear layer or a convolution that standardises its weights cannot take another input convention.
    """
    found: dict[str, nn.Conv2d] = {}
    outputs: dict[str, Tensor] = {}
    norms: dict[str, str] = {}
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0] is images:
            if not isinstance(module, nn.Conv2d) or "Std" in type(module).__name__:
                raise FoldError(f"the stem {names[module]} is a {type(module).__name__}, no plain convolution")
            found[names[module]], outputs[names[module]] = module, output
        if hasattr(module, "running_mean"):
            norms.update({conv: names[module] for conv, made in outputs.items() if inputs[0] is made})

    # timm's BatchNorms may have an activation as a child.
    layers = [m for m in model.modules() if not list(m.children()) or hasattr(m, "running_mean")]
    hooks = [m.register_forward_hook(look) for m in layers if not isinstance(m, nn.Identity)]
    training = model.training
    try:
        model.eval()(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not found:
        raise FoldError("no convolution reads the image itself")
    return [Stem(name, conv.bias is not None, norms.get(name)) for name, conv in found.items()]


def fold_stem(state: StateDict, stems: Sequence[Stem], theirs: Scaling, ours: Scaling) -> tuple[StateDict, list[str]]:
    """Return `state` with stems of one channel that take images scaled as `ours`, and the keys that changed.

    `theirs` has a number per channel of the stored stems, or one for all. Raises FoldError where the constant has no
    place: neither a bias nor a BatchNorm.
    """
    folded, changed = dict(state), []
    for stem in stems:
        key = f"{stem.conv}.weight"
        kernels = state[key].double()
        mean, std = (torch.tensor(values, dtype=torch.double).expand(kernels.shape[1]) for values in theirs)
        (our_mean,), (our_std,) = ours
        scaled = kernels / std.view(1, -1, 1, 1)
        folded[key] = (scaled.sum(1, keepdim=True) * our_std).to(state[key].dtype)
        changed.append(key)
        constant = (scaled * (our_mean - mean).view(1, -1, 1, 1)).sum((1, 2, 3))
        if not constant.any():
            continue
        if not stem.has_bias and stem.batchnorm is None:
            raise FoldError(f"{key} has neither a bias nor a BatchNorm after it, which the mean could move into")
        place = f"{stem.conv}.bias" if stem.has_bias else f"{stem.batchnorm}.running_mean"
        sign = 1 if stem.has_bias else -1
        folded[place] = (state[place].double() + sign * constant).to(state[place].dtype)
        changed.append(place)
    return folded, changed
