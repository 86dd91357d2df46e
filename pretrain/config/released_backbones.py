"""The 12 released backbones as a table: class names, checkpoint stems, timm models, widths."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Release:
    """One released backbone: its class name, checkpoint stems, timm model, feature width C and file size."""

    class_name: str
    checkpoints: tuple[str, ...]
    timm_name: str
    channels: int
    megabytes: float  # of the published .pth, MB = 10^6 bytes
    options: dict[str, Any] = field(default_factory=dict)


def _mixes(stem: str) -> tuple[str, ...]:
    return tuple(f"0_{stem}_{mix}_ssl" for mix in ("public", "internal", "combined"))


RELEASED: dict[str, Release] = {
    "vit": Release(
        "ViT_backbone",
        _mixes("vit"),
        "vit_small_patch16_rope_mixed_224.naver_in1k",
        384,
        86.63,
        {"img_size": (320, 240), "dynamic_img_size": True},
    ),
    "convnextv2": Release("convnextv2_backbone", _mixes("convnextv2"), "convnextv2_tiny.fcmae_ft_in1k", 768, 112.85),
    "densenet121": Release("densenet121_backbone", ("1_densenet121_combined",), "densenet121.tv_in1k", 1024, 29.99),
    "efficientnetv2_s": Release(
        "efficientnetv2_s_backbone", ("1_efficientnetv2_combined",), "tf_efficientnetv2_s.in1k", 256, 81.07
    ),
    "vgg16": Release("vgg16_backbone", ("1_VGG16_combined",), "vgg16.tv_in1k", 512, 59.93),
    "mobilenetv4": Release(
        "mobilenetv4_backbone",
        ("1_mobilenetv4_combined",),
        "mobilenetv4_conv_aa_large.e230_r448_in12k_ft_in1k",
        960,
        122.65,
    ),
    "resnext26": Release("resnext26_backbone", ("1_resnext26_combined",), "resnext26ts.ra2_in1k", 2048, 35.82),
    "fastvit_t8": Release("fastvit_t8_backbone", ("1_fastvit_t8_combined",), "fastvit_t8.apple_in1k", 384, 13.89),
    "regnetz": Release("regnetz_backbone", ("1_regnetz_combined",), "regnetz_040.ra3_in1k", 528, 108.17),
    "ghostnetv3": Release("ghostnetv3_backbone", ("1_ghostnetv3_combined",), "ghostnetv3_100.in1k", 160, 9.19),
    "mambaout_femto": Release("mambaout_femto_backbone", ("1_mambaout_combined",), "mambaout_femto.in1k", 288, 24.15),
    "starnet_s4": Release("starnet_s4_backbone", ("1_starnets4_combined",), "starnet_s4.in1k", 256, 29.92),
}


def release_of(name: str) -> Release | None:
    """The released backbone that `name` stands for: its short or class name, timm model or a checkpoint's stem."""
    for short, release in RELEASED.items():
        if name in (short, release.class_name, release.timm_name, *release.checkpoints):
            return release
    return RELEASED["vit"] if name == "ViTBackbone" else None
