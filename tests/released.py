"""The released backbones as parameters: four unlike ones in `pytest -m slow`, the others in `pytest -m extended`."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest

from pretrain.config.released_backbones import RELEASED

# A transformer, a net full of BatchNorm, one with depthwise convolutions, one whose features are NHWC.
UNLIKE = ("vit", "densenet121", "fastvit_t8", "mambaout_femto")


def released(
    names: Iterable[str] = RELEASED,
    fast: Collection[str] = (),
    slow: Collection[str] = UNLIKE,
    values: Callable[[str], tuple[Any, ...]] = lambda name: (name,),
) -> list[Any]:
    """Parameters, `values` of each name, for these backbones; those of `fast` are tested always."""
    marks = {name: [pytest.mark.slow if name in slow else pytest.mark.extended] for name in names}
    return [pytest.param(*values(name), marks=[] if name in fast else marks[name]) for name in marks]
