"""Radiographs that are the same or nearly so, and the patients that they join."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.errors import PackError
from data_shards.ledger import Ledgers
from data_shards.pack.crop_job import Frame
from data_shards.pack.perceptual_hash import near_pairs
from data_shards.progress import progress
from data_shards.pseudonyms import Key
from data_shards.shards.manifest import MANIFEST, NEAR
from data_shards.shards.shard_set import ShardSet

HERE, EARLIER = "this pack", "an earlier pack"
KNOWN = f"the same pixels are in {EARLIER}"


@dataclass
class Earlier:
    """What earlier packs hold: by fingerprint and by perceptual hash a radiograph and its patient's id.

    `radiographs` gives each one's fingerprint. `trained` and `held` are the patients of their main parts and of their
    holdouts, `joined` pairs of patients found to be one, and `unhashed` the packs in which near duplicates were not
    sought, so that none can be found.
    """

    pixels: dict[str, tuple[str, str]] = field(default_factory=dict)
    hashes: dict[str, tuple[str, str]] = field(default_factory=dict)
    radiographs: dict[str, str] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    unhashed: list[Path] = field(default_factory=list)
    joined: list[tuple[str, str]] = field(default_factory=list)


def read_earlier(folders: Sequence[str | Path], key: Key, quiet: bool = True) -> Earlier:
    """Earlier packs and their holdouts. Raises PackError for a pack of another key, whose ids mean nothing here."""
    found = Earlier()
    for folder in map(Path, folders):
        for part in [folder, *([folder / "holdout"] if (folder / "holdout" / MANIFEST).exists() else [])]:
            samples = ShardSet(part)
            if samples.manifest.get("key") != key.check():
                raise PackError(f"{part} was packed with another key, so its radiographs cannot be compared: use --key")
            for i in progress(range(len(samples)), desc=f"reading {part.name}", unit=" samples", disable=quiet):
                meta = samples.meta(i)
                one = meta["radiograph"], meta["patient"]
                found.pixels.setdefault(meta["pixels"], one)
                found.radiographs[meta["radiograph"]] = meta["pixels"]
                (found.held if samples.manifest.get("part") == "holdout" else found.trained).add(meta["patient"])
                if meta.get("hash"):
                    found.hashes.setdefault(meta["hash"], one)
            if samples.manifest.get("settings", {}).get("near_bits") is None:
                found.unhashed.append(part)
        if (folder / NEAR).is_file():
            lines = (folder / NEAR).read_text(encoding="utf-8").splitlines()
            found.joined += [tuple(json.loads(line)["patients"]) for line in lines]
    return found


class Patients:
    """Patients, some of whom turn out to be one: a union-find over their ids."""

    def __init__(self, earlier: Earlier) -> None:
        self._parent: dict[str, str] = {}
        self._trained, self._held = earlier.trained, earlier.held
        self.torn = [(both, both) for both in sorted(earlier.trained & earlier.held)]
        """Pairs that turned out one, the first of whom was trained on and the second held out, in earlier packs."""
        for one, other in earlier.joined:
            self.join(one, other)

    def join(self, one: str, other: str) -> None:
        """Make two patients one: under the id that was trained on in an earlier pack, or held out, else the lower."""
        first, second = sorted(
            (self.of(one), self.of(other)), key=lambda id_: (id_ not in self._trained, id_ not in self._held, id_)
        )
        if first != second:
            self._parent[second] = first
            if first in self._trained and second in self._held:
                self.torn.append((first, second))

    def is_known(self, patient: str) -> bool:
        """Whether an earlier pack has put that patient on a side."""
        id_ = self.of(patient)
        return id_ in self._trained or id_ in self._held

    def of(self, patient: str) -> str:
        """The id under which a patient goes."""
        while patient in self._parent:
            patient = self._parent[patient]
        return patient

    def is_held_out(self, patient: str, share: float) -> bool:
        """Whether a patient belongs to the holdout: as in earlier packs, else for so large a share of all by the id.

        That is a keyed hash, so the answer is the same in every pack of one key and share.
        """
        id_ = self.of(patient)
        if id_ in self._trained or id_ in self._held:
            return id_ not in self._trained
        return int(id_, 16) < share * 16 ** len(id_)


def drop_duplicates(frames: Iterable[Frame], earlier: Earlier, ledgers: Ledgers) -> list[dict[str, Any]]:
    """Of radiographs with the same pixels keep the one of an earlier pack, else the deepest, the first of several.

    The others are rejected.

    Returns the pairs whose patients differ, as lines of `near.jsonl`.
    """
    first = dict(earlier.pixels)
    joined = []
    for frame in sorted(frames, key=lambda frame: -frame.bits):  # 12 bits are not to go for their 8-bit copy
        twin, patient = first.setdefault(frame.pixels, (frame.radiograph, frame.patient))
        if twin == frame.radiograph and frame.pixels not in earlier.pixels:
            continue
        where = EARLIER if frame.pixels in earlier.pixels else HERE
        ledgers.reject("radiographs", frame.radiograph, f"a duplicate: the same pixels are in {where}", twin=twin)
        if patient != frame.patient:
            joined.append(_line((twin, patient), (frame.radiograph, frame.patient), 0, where))
    return joined


def find_near(
    frames: Sequence[Frame], earlier: Earlier, within: int, drop: bool, ledgers: Ledgers
) -> list[dict[str, Any]]:
    """Pairs of radiographs whose perceptual hashes differ in at most `within` bits, as lines of `near.jsonl`.

    With `drop` the later of two is rejected unless the earlier one was. Pairs within earlier packs are theirs.
    """
    known = [(hash_, *one) for hash_, one in sorted(earlier.hashes.items())]
    deepest = sorted(frames, key=lambda frame: -frame.bits)  # first, as it is the later that may go
    own = [(frame.hash, frame.radiograph, frame.patient) for frame in deepest if frame.hash]
    everyone = known + own
    lines = []
    for i, j, distance in near_pairs([hash_ for hash_, _, _ in everyone], within):
        if j < len(known):
            continue
        where = EARLIER if i < len(known) else HERE
        one, other = everyone[i][1:], everyone[j][1:]
        lines.append(_line(one, other, distance, where))
        if drop and (i < len(known) or ledgers.is_used("radiographs", one[0])):
            reason = f"nearly a duplicate of a radiograph of {where} ({NEAR} says how near)"
            ledgers.reject("radiographs", other[0], reason, twin=one[0])
    return lines


def _line(one: tuple[str, str], other: tuple[str, str], distance: int, where: str) -> dict[str, Any]:
    return {
        "radiographs": [one[0], other[0]],
        "patients": [one[1], other[1]],
        "distance": distance,
        "in": where,
    }
