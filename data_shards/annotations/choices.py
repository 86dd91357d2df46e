"""What the user decides about boxes and patients."""

from collections.abc import Sequence
from typing import NamedTuple


class Choices(NamedTuple):
    """What the user decides: the settings of those names (config.PackConfig).

    `boxes` is one of CHOICES, or anything else for annotations given apart; `labels` names the labels whose texts
    travel whatever they are, columns beside KNOWN_COLUMNS among them.
    """

    boxes: str = "auto"
    labels: Sequence[str] = ()
    patient_column: str | None = None
    masks: str | None = None
