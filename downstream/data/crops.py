"""Labelled crops from shards, and their patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.shards.schema import RESERVED
from data_shards.shards.shard_set import ShardSet
from downstream.config import DownstreamError


@dataclass(frozen=True)
class Crops:
    """Crops by place, without their images.

    The set and number of each, keys [N], patients [N], which are queries (bool [N]), and labels by name [N] ("" where
    a crop does not carry it).
    """

    sets: Sequence[ShardSet]
    places: list[tuple[int, int]]
    keys: list[str]
    patients: np.ndarray
    query: np.ndarray
    labels: dict[str, np.ndarray]
    unclaimed: int = 0
    """Crops whose shards do not say whose they are: each counts as a patient."""

    def __len__(self) -> int:
        return len(self.places)

    def doubts(self) -> list[str]:
        """What a reader of scores must know of the patients."""
        said = []
        if self.unclaimed:
            stated = f"{self.unclaimed} of {len(self)} crops state no patient, so each counts as one"
            said.append(f"{stated}, and no score here is known to be of new patients")
        keys = {shards.manifest["key"] for shards in self.sets if "key" in shards.manifest}
        if len(keys) > 1:
            said.append(
                f"the shards were packed with {len(keys)} keys, under which one patient has several ids: who is in two "
                "of them counts as two (`pack` takes one --key for all)"
            )
        return said

    def image(self, i: int) -> np.ndarray:
        """Crop `i` as stored, uint8 or uint16 [h, w]."""
        source, index = self.places[i]
        return self.sets[source].image(index)


def find_crops(shards: Sequence[str], labels: Sequence[str], query: Sequence[str] | None = None) -> Crops:
    """The crops of `shards` and of `query` that carry at least one of `labels`; without labels, all.

    Raises ShardError for a bad folder, DownstreamError for a label that no crop of either side carries and for a
    patient on both sides: what is measured must be new to what has learnt.
    """
    sets = [ShardSet(folder) for folder in (*shards, *(query or ()))]
    metas = {(source, i): sets[source].meta(i) for source in range(len(sets)) for i in range(len(sets[source]))}
    places = [place for place, meta in metas.items() if not labels or any(meta.get(x) is not None for x in labels)]
    columns = {x: np.array([_text(metas[place].get(x)) for place in places]) for x in labels}
    whose = [metas[place].get("patient") for place in places]
    patients = np.array([str(place if who is None else who) for place, who in zip(places, whose, strict=True)])
    unclaimed = whose.count(None)
    is_query = np.array([source >= len(shards) for source, _ in places], dtype=bool)
    for side, folders in ((~is_query, shards), (is_query, query or ())):
        for label, column in columns.items():
            if folders and not any(column[side]):
                fields = ", ".join(sorted({field for meta in metas.values() for field in meta} - RESERVED))
                raise DownstreamError(
                    f"no crop carries the label '{label}' in {', '.join(folders)}; they have {fields or 'none'}"
                )
    if both := sorted(set(patients[is_query]) & set(patients[~is_query])):
        raise DownstreamError(
            f"--shards and --query share {len(both)} patients (the first is {both[0]}): "
            "use shards of other patients, such as the holdout folder of the same pack"
        )
    return Crops(sets, places, [sets[source].key(i) for source, i in places], patients, is_query, columns, unclaimed)


def _text(label: object) -> str:
    return "" if label is None else str(label)
