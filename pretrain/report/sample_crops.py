"""The crops that a report shows: evenly spread over the held-out sets, or over those trained on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from augment import fit, stacked
from data_shards.inspect.preview import eight_bits
from data_shards.shards.stream import CorruptError, ShardSet
from pretrain.evaluation.embed import pixel_features
from pretrain.evaluation.labelled_crops import PIXELS, patient_of

SHOWN = 600
"""Crops that are embedded: as many points as one can see, in seconds."""


class Specimens(NamedTuple):
    """N crops: images as stored, uint8; inputs [N, H, W] as `stacked`; pixels float32 [N, 576], labels, patients [N].

    `label` is the labels' name; without one all of them are "".
    """

    images: list[np.ndarray]
    inputs: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    label: str

    def resized(self, chosen: Sequence[int], size: tuple[int, int]) -> np.ndarray:
        """Those crops at another size (H, W): [n, H, W]."""
        return stacked([fit(self.images[i], size) for i in chosen])


def specimens(sets: Sequence[ShardSet], label: str, size: tuple[int, int], limit: int = SHOWN) -> Specimens:
    """At most `limit` crops of `sets`, evenly spread, at `size` (H, W) and as they are; unreadable ones are left out.

    Only crops that carry `label`, if any does. Raises ShardError for sets that cannot be read.
    """
    places = [(shards, i) for shards in sets for i in range(len(shards))]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(limit, len(places))).round().astype(int))
    read: list[tuple[np.ndarray, str, str]] = []
    for place in chosen:
        shards, i = places[place]
        try:
            meta, image = shards.meta(i), eight_bits(shards.image(i))
        except CorruptError:
            continue
        name = "" if meta.get(label) is None else str(meta[label])  # 0 is a label
        read.append((image, name, patient_of(meta, shards, i)))
    if any(name for _, name, _ in read):
        read = [one for one in read if one[1]]
    else:
        label = ""
    images = [image for image, _, _ in read]
    labels, patients = (np.array(names) for names in zip(*(names for _, *names in read), strict=True))
    pixels = stacked([fit(image, PIXELS) for image in images]).reshape(len(images), -1)
    inputs = stacked([fit(image, size) for image in images])
    return Specimens(images, inputs, pixel_features(pixels), labels, patients, label)


def examples(crops: Specimens, count: int) -> list[int]:
    """`count` crops to look at, by rule and not by looks: the first of each label in turn.

    No patient twice, as long as there are others.
    """
    names = np.unique(crops.labels)
    chosen: list[int] = []
    for turn in range(min(count, len(crops.labels))):
        left = np.setdiff1d(np.arange(len(crops.labels)), chosen)
        fresh = left[~np.isin(crops.patients[left], crops.patients[chosen])]
        of_label = [i for i in fresh if crops.labels[i] == names[turn % len(names)]]
        chosen.append(int([*of_label, *fresh, *left][0]))
    return chosen
