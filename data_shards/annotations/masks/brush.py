"""Label Studio's brush masks: run lengths of RGBA values, packed bit by bit."""

from collections.abc import Sequence

import numpy as np

from data_shards.annotations.masks.rasters import bounds_of


def brush_bounds(packed: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return x0, y0, x1, y1 (end-exclusive) of what is opaque in a mask of this width and height; None: nothing is.

    Raise ValueError where it is damaged or of another size. The packing is that of the thi.ng/rle-pack library: 32 bits
    of length, 5 of a word's size, four times 4 of the sizes of counts; then runs of one word, or words one by one.
    """
    width, height = size
    bits = np.unpackbits(np.asarray(packed, np.uint8))
    at = 0

    def number(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise ValueError("a brush mask that ends early")
        value = 0
        for bit in bits[at : at + count].tolist():
            value = value << 1 | bit
        at += count
        return value

    length = number(32)
    if length != width * height * 4:
        raise ValueError("a brush mask of another size")
    word = number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    values, filled = np.zeros(length, np.uint8), 0
    while filled < length:
        same = number(1)
        end = min(length, filled + 1 + number(sizes[number(2)]))
        if same:
            values[filled:end] = number(word) & 255
        else:
            values[filled:end] = [number(word) & 255 for _ in range(end - filled)]
        filled = end
    return bounds_of(values.reshape(height, width, 4)[..., 3])
