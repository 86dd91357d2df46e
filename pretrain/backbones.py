"""The released import path: every name of `pretrain.models.backbones`."""

from pretrain.models.backbones import *  # noqa: F403
