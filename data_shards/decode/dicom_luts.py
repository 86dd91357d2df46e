"""Stored values of a gray DICOM image as it is meant to be shown (DICOM PS3.3, C.11: modality, VOI, presentation)."""

import numpy as np
from pydicom import Dataset

from data_shards.decode.bit_depth import depth_of
from data_shards.decode.dicom_header import element, number, word

MIN_CLIPPED = 0.25
"""Share of the pixels. A window that makes fewer of them black or white is never set aside."""


def shown(header: Dataset, values: np.ndarray, stored_bits: int) -> tuple[np.ndarray, int, bool]:
    """Return stored values int32 [H, W] of `stored_bits` (1 to 16) as uint8 or uint16 [H, W], dense bright.

    Also return their bits, and whether a stated VOI LUT or window was set aside because it clips (`_clips`).

    Every step depends on the stored value alone, so it is worked out in float64 for a table of all values: modality
    LUT or rescale; then the VOI LUT, or else the first window (linear, exact or sigmoid); without either, or where it
    clips, the whole range of the depth. MONOCHROME1 or a PresentationLUTShape of INVERSE turns gray around, once.
    Padding becomes 0.

    The depth is `stored_bits`, but 16 of 16 tell of the container only: there the range of the values decides. Where
    neither step says what negative values are, they lie in the lower half of the depth.
    """
    least = -(1 << stored_bits - 1) if header.PixelRepresentation == 1 else 0
    stored = np.arange(least, least + (1 << stored_bits))
    indices = values - least
    padding = _is_padding(header, stored)
    counts = np.where(padding, 0, np.bincount(indices.ravel(), minlength=stored.size))
    seen = stored[counts > 0] if counts.any() else np.zeros(1, int)

    bits = stored_bits if stored_bits < 16 else depth_of(seen[0], seen[-1])
    whole = (stored + (1 << bits - 1 if seen[0] < 0 else 0)) / ((1 << bits) - 1)
    modality, full = _modality(header, stored, whole)
    share = _windowed(header, modality, full)
    clips = share is not full and _clips(share, full, counts)
    share = full if clips else share
    if word(header, "PhotometricInterpretation") == "MONOCHROME1" or word(header, "PresentationLUTShape") == "INVERSE":
        share = 1 - share
    bits = max(bits, 8)
    table = np.rint(share.clip(0, 1) * ((1 << bits) - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    table[padding] = 0
    return table[indices], bits, clips


def _clips(share: np.ndarray, full: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether a window hides more than it shows of an image that has each table value `counts` times.

    It hides the pixels that become pure black or white. Each group of pixels weighs as many as it has, times the range
    of gray that its middle half covers (`full`, without the window). Background air and collimated borders are many
    pixels of nearly one value, so a window may clip them; tissue has a range. Values are compared in 8 bits.
    """
    levels = np.rint(share.clip(0, 1) * 255)
    black, white = levels == 0, levels == 255
    hidden = counts[black | white].sum()
    if hidden <= MIN_CLIPPED * counts.sum():
        return False
    black_weight, white_weight, shown_weight = (
        _weight(full[group], counts[group]) for group in (black, white, ~(black | white))
    )
    return black_weight + white_weight > shown_weight


def _weight(gray: np.ndarray, counts: np.ndarray) -> float:
    """Return the number of pixels times their interquartile range of gray, whose table values are ordered."""
    total = counts.sum()
    if not total:
        return 0.0
    low, high = np.searchsorted(np.cumsum(counts), (0.25 * total, 0.75 * total))
    return float(total * abs(gray[high] - gray[low]))


def _is_padding(header: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which stored values are padding, by PixelPaddingValue and PixelPaddingRangeLimit (PS3.3, C.7.5.1.1.2)."""
    value = number(header, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.size, dtype=bool)
    limit = number(header, "PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    if stored[0] < 0:
        ends = [end - 65536 if end >= 32768 else end for end in ends]  # written as unsigned
    return (stored >= min(ends)) & (stored <= max(ends))


def _modality(header: Dataset, stored: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that a window is stated in, and how bright they are without one, 0 to 1 (PS3.3, C.11.1)."""
    sequence = element(header, "ModalityLUTSequence")
    if sequence:
        found, top = _look_up(header, sequence[0], stored)
        return found, found / top
    slope, intercept = number(header, "RescaleSlope") or 1.0, number(header, "RescaleIntercept") or 0.0
    return stored * slope + intercept, whole if slope > 0 else 1 - whole


def _windowed(header: Dataset, values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """VOI LUT, or the first window, of modality values as 0 to 1 (PS3.3, C.11.2); `share` where there is neither."""
    sequence = element(header, "VOILUTSequence")
    if sequence:
        found, top = _look_up(header, sequence[0], np.rint(values))
        return found / top
    centre, width = number(header, "WindowCenter"), number(header, "WindowWidth")
    function = word(header, "VOILUTFunction")
    if centre is None or width is None or width <= 0 or (width < 1 and function in ("", "LINEAR")):
        return share
    if function == "SIGMOID":
        return 1 / (1 + np.exp((-4 * (values - centre) / width).clip(-700, 700)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def _look_up(header: Dataset, item: Dataset, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Whole `values` through a LUT (PS3.3, C.11.1.1.1), and the brightest that it can say.

    Of 16 declared bits, too, the LUT's highest entry decides.
    """
    entries, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries or 1 << 16
    first = first - 65536 if first >= 32768 and values[0] < 0 else first  # written as unsigned
    data = item.LUTData
    if isinstance(data, bytes):
        size = 2 if len(data) >= 2 * entries else 1
        order = "<" if header.original_encoding[1] else ">"
        data = np.frombuffer(data, f"{order}u{size}")[:entries]
    table = np.asarray(data, dtype=np.float64)[:entries]
    highest = int(table.max())
    top = (1 << bits) - 1 if bits < 16 and highest < 1 << bits else (1 << depth_of(0, highest)) - 1
    return table[(values - first).clip(0, len(table) - 1).astype(int)], top
