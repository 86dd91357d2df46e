"""Student-teacher pretraining of dental radiograph backbones.

In: a `Config` and shards. Out: a run folder with weights in the released format, metrics and a report. Open
`method/trainer.py` first, which is the method; `run.py` puts the parts together.
"""

from pretrain.checkpoints.combined import load_combined, save_combined
from pretrain.models.backbones import build_backbone
from pretrain.models.projection_head import proj_head

__all__ = ["build_backbone", "load_combined", "proj_head", "save_combined"]
