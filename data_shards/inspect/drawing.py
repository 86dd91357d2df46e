"""Words on pictures that people look at."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

GROUND = 24
"""Gray of what lies between pictures: darker than most radiographs, and not black as their borders are."""


def caption(labels: Mapping[str, object]) -> str:
    """What to write beside a crop or a box: the tooth, else its class, and a finding if it has one."""
    names = [labels.get(name) for name in ("fdi", "class", "label", "category", "tooth_type")]
    shown = [next((str(name) for name in names if name), ""), str(labels.get("finding") or "")]
    return " ".join(text for text in shown if text)


def write(picture: np.ndarray, text: str, x: int, y: int) -> None:
    """Write a line in white on a dark ground onto `picture` uint8 [H, W], its foot at x, y."""
    plain = text.encode("ascii", "replace").decode()
    if plain:
        (width, height), below = cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
        cv2.rectangle(picture, (x - 2, y - height - 2), (x + width + 1, y + below - 2), GROUND, cv2.FILLED)
        cv2.putText(picture, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1, cv2.LINE_AA)


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures uint8 [h, w] of any size, one below the other."""
    width = max(picture.shape[1] for picture in pictures)
    return np.vstack([np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=GROUND) for p in pictures])
