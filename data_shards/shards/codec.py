"""The bytes of one sample's members as an image and as fields; None for what is damaged."""

import json
from typing import Any

import cv2
import numpy as np


def gray_of(raw: bytes) -> np.ndarray | None:
    """An encoded image as gray uint8 or uint16 [H, W]."""
    try:
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        return None
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2GRAY)


def raised(gray: np.ndarray, bits: int) -> np.ndarray:
    """uint16 of `bits` bits with white at 65535."""
    return np.rint(gray * (65535 / ((1 << bits) - 1))).astype(np.uint16)


def fields_of(raw: bytes) -> dict[str, Any] | None:
    """A JSON object."""
    try:
        fields = json.loads(raw)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
