"""What differs between two exposures of one tooth, one operation each, in the order in which a radiograph meets them.

Each has its formula in its docstring, with x the gray of a view from 0 (black) to 1 (white); the ranges and their
reasons are in `ViewConfig`.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np

from augment.resize import BORDER
from augment.transforms import Operation, even, even_in_log


class Unsharpness(Operation):
    """Focal spot and detector: a Gaussian of standard deviation `sigma`, a fraction of the view's height.

    At least `FINEST` pixels: less changes no pixel, and small views would never be blurred.
    """

    def __init__(self, sigma: tuple[float, float] = (0.002, 0.006), p: float = 0.2) -> None:
        super().__init__(p=p)
        self.sigma = sigma

    def draw(self, u: Sequence[float]) -> dict[str, Any]:
        """`sigma`."""
        return {"sigma": even(u[0], self.sigma)}

    def change(self, image: np.ndarray, white: float, sigma: float) -> np.ndarray:
        """The blurred image; beyond its edge it is reflected."""
        return _gaussian(image, max(FINEST, sigma * image.shape[0]))


class Motion(Operation):
    """The mean over a straight way of `length`, a fraction of the view's height, along its rows or its columns.

    A patient nods or turns, a panoramic scans sideways; the view's own rotation has tilted both by then. At least
    `SHORTEST` pixels, for the same reason.
    """

    def __init__(self, length: tuple[float, float] = (0.004, 0.012), p: float = 0.1) -> None:
        super().__init__(p=p)
        self.length = length

    def draw(self, u: Sequence[float]) -> dict[str, Any]:
        """`length`, and whether the way lies `across` the view or down it."""
        return {"length": even(u[0], self.length), "across": u[1] < 0.5}

    def change(self, image: np.ndarray, white: float, length: float, across: bool) -> np.ndarray:
        """The smeared image; a way that ends within a pixel counts that pixel by its share."""
        pixels = max(SHORTEST, length * image.shape[0])
        reach = math.ceil((pixels - 1) / 2)
        kernel = np.ones(2 * reach + 1, np.float32)
        kernel[[0, -1]] = (pixels - (2 * reach - 1)) / 2
        kernel /= pixels
        along_rows, along_columns = (kernel, _ONE) if across else (_ONE, kernel)
        return cv2.sepFilter2D(image, -1, along_rows, along_columns, borderType=BORDER)


class QuantumNoise(Operation):
    """Counted X-ray quanta on an image displayed bright where few arrived: x + strength sqrt(1 - x) n.

    The dose that made gray x is in proportion to 1 - x and its count is Poisson, so the deviation is most in black and
    none in white. The count is taken as normal, which it is at such doses; n is normal with variance 1, its grain one
    pixel or wider, as a crop that is enlarged has it.
    """

    def __init__(self, strength: tuple[float, float] = (0.005, 0.02), p: float = 0.2) -> None:
        super().__init__(p=p)
        self.strength = strength

    def draw(self, u: Sequence[float]) -> dict[str, Any]:
        """`strength`, the `grain` of the noise, and where in its stored field it is read."""
        return {"strength": even(u[0], self.strength), "grain": GRAINS[int(3 * u[1])], "place": (u[2], u[3])}

    def change(
        self, image: np.ndarray, white: float, strength: float, grain: float, place: tuple[float, float]
    ) -> np.ndarray:
        """The image with noise of `strength`, the standard deviation in black as a fraction of full scale."""
        if white == 255:
            noise = cv2.LUT(image, (255 * strength * _ROOT_DOSE).astype(np.float32))
            return cv2.add(image, cv2.multiply(noise, _noise(image.shape, grain, place), dst=noise), dtype=cv2.CV_8U)
        deviation = strength * np.sqrt(1 - image)
        return np.clip(image + deviation * _noise(image.shape, grain, place), 0, 1, dtype=np.float32)


class LocalContrast(Operation):
    """A vendor's equalisation, or its opposite: x + amount (x - m), m the mean of x about each pixel.

    m is weighted by a Gaussian of standard deviation `WINDOW` times the view's height, on a copy of some 32 rows.
    """

    def __init__(self, amount: tuple[float, float] = (-0.15, 0.4), p: float = 0.15) -> None:
        super().__init__(p=p)
        self.amount = amount

    def draw(self, u: Sequence[float]) -> dict[str, Any]:
        """`amount`."""
        return {"amount": even(u[0], self.amount)}

    def change(self, image: np.ndarray, white: float, amount: float) -> np.ndarray:
        """The image with its difference to the local mean enlarged by 1 + `amount`."""
        height, width = image.shape
        factor = max(1, height // 32)
        mean, variance = image, (WINDOW * height / factor) ** 2
        if factor > 1:
            small = (max(1, round(width / factor)), max(1, round(height / factor)))
            mean = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
            variance -= 1 / 4  # what averaging squares (1/12) and drawing straight lines between them (1/6) blur
        mean = _gaussian(mean, math.sqrt(variance))
        if factor > 1:
            mean = cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR)
        return _beyond(image, mean, amount, white)


class Sharpening(Operation):
    """A vendor's unsharp masking: x + amount (x - g), g the view blurred by `radius` times its height.

    At least by `FINEST` pixels.
    """

    def __init__(self, amount: tuple[float, float] = (0.3, 1.5), radius: float = 0.004, p: float = 0.15) -> None:
        super().__init__(p=p)
        self.amount, self.radius = amount, radius

    def draw(self, u: Sequence[float]) -> dict[str, Any]:
        """`amount`."""
        return {"amount": even(u[0], self.amount)}

    def change(self, image: np.ndarray, white: float, amount: float) -> np.ndarray:
        """The image with its fine detail enlarged by 1 + `amount`."""
        return _beyond(image, _gaussian(image, max(FINEST, self.radius * image.shape[0])), amount, white)


class Tone(Operation):
    """Exposure, detector and display curve: (x^gamma - m) contrast + m + brightness, m the mean of x to the gamma.

    Contrast turns about the view's own level, as windowing does: about mid-gray it would blacken dark crops.
    """

    def __init__(
        self,
        brightness: tuple[float, float] = (-0.1, 0.1),
        contrast: tuple[float, float] = (0.7, 1.5),
        gamma: tuple[float, float] = (0.67, 1.5),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness, self.contrast, self.gamma = brightness, contrast, gamma

    def draw(self, u: Sequence[float]) -> dict[str, Any]:
        """`brightness`, `contrast` and `gamma`."""
        return {
            "brightness": even(u[0], self.brightness),
            "contrast": even_in_log(u[1], self.contrast),
            "gamma": even_in_log(u[2], self.gamma),
        }

    def change(self, image: np.ndarray, white: float, brightness: float, contrast: float, gamma: float) -> np.ndarray:
        """One table of 256 grays for uint8, one pass over floats."""
        shift = brightness + (1 - contrast) * (cv2.mean(image)[0] / white) ** gamma
        if white == 255:
            curve = cv2.pow(_GRAYS, gamma)
            return cv2.LUT(image, cv2.addWeighted(curve, 255 * contrast, curve, 0, 255 * shift, dtype=cv2.CV_8U))
        return np.clip(cv2.pow(image, gamma) * np.float32(contrast) + np.float32(shift), 0, 1, dtype=np.float32)


class CollimatorEdge(Operation):
    """Beyond a straight line near one side of the view all is white, as unexposed, or black, as software paints it."""

    def __init__(self, width: tuple[float, float] = (0.03, 0.15), p: float = 0.05) -> None:
        super().__init__(p=p)
        self.width = width

    def draw(self, u: Sequence[float]) -> dict[str, Any]:
        """`side` (0 left, then clockwise), where the line meets its two neighbours, and whether it is `bright`."""
        return {"side": int(4 * u[0]), "ends": (even(u[1], self.width), even(u[2], self.width)), "bright": u[3] < 0.5}

    def change(self, image: np.ndarray, white: float, side: int, ends: tuple[float, float], bright: bool) -> np.ndarray:
        """The image with one side painted; `ends` are fractions of the way to the other side."""
        height, width = image.shape
        (a, b), reach = ends, (width, height)[side % 2]
        a, b = round(a * reach), round(b * reach)  # pixels
        result = image.copy()
        if max(a, b) == 0:
            return result
        right, bottom = width - 1, height - 1  # OpenCV paints the last point, too
        corners = {
            0: [(0, 0), (a - 1, 0), (b - 1, bottom), (0, bottom)],
            1: [(0, 0), (0, a - 1), (right, b - 1), (right, 0)],
            2: [(right, 0), (width - a, 0), (width - b, bottom), (right, bottom)],
            3: [(0, bottom), (0, height - a), (right, height - b), (right, bottom)],
        }[side]
        return cv2.fillConvexPoly(result, np.array(corners, np.int32), white if bright else 0.0)


class BurnedInText(Operation):
    """A side marker or a tooth's number in white or black at the top or bottom, 0.06 to 0.12 of the view high.

    At least 7 pixels, below which it is no letter; views under 48 pixels have no room for it.
    """

    def draw(self, u: Sequence[float]) -> dict[str, Any]:
        """The `text`, its `corner` as fractions of the free space, its `height`, and whether it is `bright`."""
        text = ("L", "R", str(11 + int(38 * u[1])), str(1 + int(32 * u[1])))[int(4 * u[0])]
        low = 0.9 if u[3] < 0.5 else 0.0
        return {
            "text": text,
            "corner": (u[2], low + 0.2 * (u[3] % 0.5)),
            "height": 0.06 + 0.06 * u[4],
            "bright": u[5] < 0.7,
        }

    def change(
        self, image: np.ndarray, white: float, text: str, corner: tuple[float, float], height: float, bright: bool
    ) -> np.ndarray:
        """The image with the letters on it."""
        result = image.copy()
        if image.shape[0] < 48:
            return result
        scale = max(7, height * image.shape[0]) / 21  # capitals of this font are 21 pixels high at scale 1
        thickness = max(1, round(2 * scale))
        (wide, high), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        letters = np.zeros((high + below, wide), np.uint8)
        cv2.putText(letters, text, (0, high), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
        x = round(corner[0] * max(0, image.shape[1] - wide))
        y = round(corner[1] * max(0, image.shape[0] - high - below))
        part = result[y : y + letters.shape[0], x : x + letters.shape[1]]
        ink = letters[: part.shape[0], : part.shape[1]] / np.float32(255)
        blended = part + ink * (np.float32(white if bright else 0) - part)
        part[...] = blended + 0.5 if white == 255 else blended
        return result


FINEST = 0.5
"""Smallest standard deviation of a blur in pixels: a neighbour weighs 0.11."""
SHORTEST = 1.5
"""Shortest smear in pixels: the two neighbours weigh 0.17 each."""
WINDOW = 0.06
"""`LocalContrast`'s Gaussian: over an eighth of the view's height, a crown's width."""
GRAINS = (0.0, 0.6, 1.0)
"""Standard deviations in pixels that the noise is smoothed by, one third of the noisy views each."""

_FIELD = 512  # pixels on each side of a stored noise field: 1 MB, so that it stays in a core's cache
_GRAYS = np.arange(256, dtype=np.float32) / 255
_ROOT_DOSE = np.sqrt(1 - _GRAYS)
_ONE = np.ones(1, np.float32)


def _gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurred by a Gaussian of `sigma` pixels, cut off at 3 of them."""
    reach = math.ceil(3 * sigma)
    kernel = cv2.getGaussianKernel(2 * reach + 1, sigma, cv2.CV_32F)
    # The same as cv2.GaussianBlur to a gray level, in a third of its time on uint8.
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=BORDER)


def _beyond(image: np.ndarray, base: np.ndarray, amount: float, white: float) -> np.ndarray:
    """`image + amount (image - base)`, clipped."""
    result = cv2.addWeighted(image, 1 + amount, base, -amount, 0)
    return result if white == 255 else np.clip(result, 0, 1, out=result)


@cache
def _field(grain: float, down: int = 1, across: int = 1) -> np.ndarray:
    """float32 [512 down, 512 across] normal noise, smoothed by `grain` pixels, variance 1; the same in every process.

    Drawn once, because drawing it for each view would cost the most of all; its edges meet, so it is repeated.
    """
    if (down, across) != (1, 1):
        return np.tile(_field(grain), (down, across))
    field: np.ndarray = np.random.default_rng(0).standard_normal((_FIELD, _FIELD), dtype=np.float32)
    if grain:
        reach = math.ceil(3 * grain)
        kernel = cv2.getGaussianKernel(2 * reach + 1, grain, cv2.CV_32F)
        wrapped = cv2.copyMakeBorder(field, reach, reach, reach, reach, cv2.BORDER_WRAP)
        field = cv2.sepFilter2D(wrapped, -1, kernel, kernel)[reach:-reach, reach:-reach]
    return np.ascontiguousarray(field / field.std())


def _noise(shape: tuple[int, ...], grain: float, place: tuple[float, float]) -> np.ndarray:
    """A part [H, W] of the field that starts at `place`, fractions of its period."""
    height, width = shape
    stored = _field(grain, 1 + -(-height // _FIELD), 1 + -(-width // _FIELD))
    y, x = int(place[0] * _FIELD), int(place[1] * _FIELD)
    return stored[y : y + height, x : x + width]
