"""The 12 released backbones, and any other timm model that can give feature maps.

Every backbone is a timm model with one input channel and `features_only=True`; its last feature map is averaged over
space, so that an image [B, 1, H, W] becomes a vector [B, C]. The timm module is the attribute `m`, as in the release,
so the keys of a state dict read `m.<timm key>`.
"""

import contextlib
import difflib
from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from data_shards.errors import Mistake
from pretrain.config.released_backbones import RELEASED, release_of


class BackboneError(Mistake):
    """A backbone that cannot be built or cannot take a view; one line saying what to do."""


ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False, "dynamic_mask": True})
"""How timm's transformers that are made for one size, ViTs and Swins, are told to take views of any."""


class Backbone(nn.Module):
    """A timm feature extractor `m` followed by global average pooling: [B, 1, H, W] float -> [B, C] float."""

    def __init__(self, timm_name: str, **options: Any) -> None:
        super().__init__()
        self.m = timm.create_model(
            timm_name, pretrained=False, in_chans=1, num_classes=0, features_only=True, **options
        )
        self.num_features: int = cast(Any, self.m.feature_info).channels()[-1]
        channels_last = str(getattr(self.m, "output_fmt", "NCHW")).endswith("NHWC")  # MambaOut
        self._space = (1, 2) if channels_last else (2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, C]."""
        return self.m(images)[-1].mean(self._space)

    def checkpoint_gradients(self, name: str) -> None:
        """Compute each block again in the backward pass instead of keeping what it made. Raises BackboneError."""
        try:
            maps = cast(Any, self.m)
            (maps if hasattr(maps, "set_grad_checkpointing") else maps.model).set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError) as error:  # timm's three ways to say it cannot
            raise BackboneError(
                f"timm cannot compute the blocks of backbone '{name}' again: give --optim.gradient_checkpointing false "
                "and, where memory is short, --optim.micro_batches"
            ) from error

    def feature_map(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, C, h, w]: the map that `forward` averages."""
        return self.channels_first(self.m(images)[-1])

    def channels_first(self, one: Tensor) -> Tensor:
        """A map as `m` gives it -> [B, C, h, w]."""
        return one.permute(0, 3, 1, 2) if self._space == (1, 2) else one


def build_backbone(name: str) -> Backbone:
    """Build a backbone with random weights.

    `name` is one of the 12 short names (`vit`, `starnet_s4`, ...), a release class name (`ViT_backbone`), a published
    checkpoint's stem, or any timm model that supports `features_only`. Raises BackboneError when it is none of these.
    """
    if release := release_of(name):
        return Backbone(release.timm_name, **release.options)
    if ":" in name or "/" in name:
        raise BackboneError(f"backbone '{name}' is a place, not a name: give a model of timm's, built here untrained")
    try:
        for options in ANY_SIZE:
            with contextlib.suppress(TypeError):  # of a model that does not know the option
                return Backbone(name, **options)
        return Backbone(name)
    except (RuntimeError, AttributeError, TypeError, AssertionError, ValueError, KeyError, OSError) as error:
        near = difflib.get_close_matches(name, [*RELEASED, *timm.list_models()], n=3)
        hint = f" (close: {', '.join(near)})" if near else ""
        raise BackboneError(
            f"backbone '{name}' is neither released nor a timm model that gives feature maps{hint}: {error}; "
            f"released: {', '.join(RELEASED)}"
        ) from error


def timm_places(ours: Sequence[str], plain: Sequence[str]) -> dict[str, str]:
    """Return keys of a plain timm model -> keys of its feature extractor `m`, for the layers that both have.

    timm's features-only wrappers rename a module's path a.b to a_b, or put `model.` before it. Layers after the last
    feature map are in the plain model alone.
    """
    places, free = {}, set(ours)
    for key in plain:
        parts = key.split(".")
        joined = ("_".join(parts[:i]) + "." + ".".join(parts[i:]) for i in range(1, len(parts)))
        if place := next((k for k in (f"model.{key}", *joined) if k in free), None):
            places[key] = place
            free.remove(place)
    return places


def fitting_backbone(name: str, sizes: Sequence[tuple[int, int]]) -> Backbone:
    """`build_backbone`, which takes one-channel views of the `sizes` (H, W) in px. Raises BackboneError if not."""
    backbone = build_backbone(name)
    for size in sizes:
        check_view_size(backbone, name, size)
    return backbone


@torch.no_grad()
def check_view_size(backbone: Backbone, name: str, size: tuple[int, int]) -> None:
    """Raise BackboneError if the backbone cannot take one-channel views of `size` (H, W) px."""
    training = backbone.training
    backbone.eval()
    try:
        channels = backbone(torch.zeros(1, 1, *size)).shape
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise BackboneError(
            f"backbone '{name}' cannot take views of {size[0]}x{size[1]} px ({reason}); use larger views "
            "(--views.global_size, --views.local_size): multiples of 32, or of 16 for a ViT; a model made for one size "
            "wants all views of that size"
        ) from error
    finally:
        backbone.train(training)
    if channels != (1, backbone.num_features):
        raise BackboneError(f"backbone '{name}' gave {tuple(channels)}, not (1, {backbone.num_features})")


@torch.no_grad()
def check_width_for_bf16(backbone: Backbone, name: str, size: tuple[int, int]) -> None:
    """Raise BackboneError where views of `size` (H, W) px shrink to a width of 1 before a convolution with a stride.

    On CPUs with bf16, torch 2.14 (oneDNN) then leaves some of the weight's gradient uninitialised: infinite at times.
    """
    narrow = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if cast(nn.Conv2d, module).stride[1] > 1 and inputs[0].shape[-1] == 1:
            narrow.append(module)

    hooks = [m.register_forward_pre_hook(look) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    training = backbone.training
    backbone.eval()(torch.zeros(1, 1, *size))
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    if narrow:
        raise BackboneError(
            f"backbone '{name}' shrinks views of {size[0]}x{size[1]} px to a width of 1 before its last stage, where "
            "gradients in bf16 are wrong on CPUs: use wider views, or --precision fp32"
        )


def freeze_unused(backbone: Backbone, size: tuple[int, int]) -> None:
    """Stop training parameters that the last feature map does not depend on, which DDP would wait for in vain.

    None of the released backbones has any; HRNet, for one, has 66. `size` (H, W) in px is that of a view to try.
    """
    training = backbone.training
    backbone.eval()(torch.zeros(1, 1, *size)).sum().backward()
    for parameter in backbone.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    backbone.train(training)


def _class_of(name: str) -> type[Backbone]:
    """The release's class of that backbone: called without arguments, it builds it."""
    release = RELEASED[name]

    def __init__(self: Backbone) -> None:
        Backbone.__init__(self, release.timm_name, **release.options)

    doc = f"{release.timm_name}, the last feature map averaged: [B, 1, H, W] -> [B, {release.channels}]."
    return type(release.class_name, (Backbone,), {"__init__": __init__, "__doc__": doc, "__module__": __name__})


ViT_backbone = ViTBackbone = _class_of("vit")  # the release spells it both ways
convnextv2_backbone = _class_of("convnextv2")
densenet121_backbone = _class_of("densenet121")
efficientnetv2_s_backbone = _class_of("efficientnetv2_s")
vgg16_backbone = _class_of("vgg16")
mobilenetv4_backbone = _class_of("mobilenetv4")
resnext26_backbone = _class_of("resnext26")
fastvit_t8_backbone = _class_of("fastvit_t8")
regnetz_backbone = _class_of("regnetz")
ghostnetv3_backbone = _class_of("ghostnetv3")
mambaout_femto_backbone = _class_of("mambaout_femto")
starnet_s4_backbone = _class_of("starnet_s4")
