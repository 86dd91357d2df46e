"""Student-teacher pretraining of dental radiograph backbones."""

from pretrain.backbones import build_backbone
from pretrain.combined import load_combined, save_combined
from pretrain.heads import proj_head

__all__ = ["build_backbone", "load_combined", "proj_head", "save_combined"]
