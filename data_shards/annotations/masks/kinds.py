"""Kinds of masks: of jaws, teeth, lesions ...; those that cover the same areas are one kind."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from data_shards.annotations.base import Annotation, FormatError, Row
from data_shards.annotations.image_matcher import nearest
from data_shards.annotations.masks.search import Stems
from data_shards.annotations.spelling import subset_words
from data_shards.errors import PackError
from data_shards.sources.inventory import Entry, Masked
from tooth_foundations.core.text import counted

SAME_AREA = "a mask of the same area as those that are used, which tell more teeth apart"
PARTLESS = "a mask whose parts are all specks, under 0.01 % of its area"
NOT_CHOSEN = "a mask of another kind than --masks says"
_EQUAL = 0.06
"""Share of their area that two masks of one thing may differ by: rims, and a lossy codec."""
_MOSTLY = 0.9  # of the radiographs that two kinds share


@dataclass
class MaskKind:
    """Masks whose folders and name endings are alike, by the radiograph that they are about."""

    label: str
    ending: str
    masks: dict[str, list[Masked]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of masks."""
        return sum(map(len, self.masks.values()))

    def is_called(self, name: str) -> bool:
        """Return whether `--masks` means this kind: a folder of its path, or an ending of names."""
        wanted = name.strip("/ ").casefold()
        return f"/{wanted}/" in f"/{self.label.casefold()}/" or (wanted.strip("*_- ") == self.ending != "")


@dataclass
class Masks:
    """Annotations of the masks that count; `left` gives the reason of those that do not, by file.

    `question` says between which kinds the user must choose.
    """

    annotations: list[Annotation] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    question: str = ""


def read_masks(masks: Sequence[Masked], radiographs: Iterable[Entry], asked: str | None) -> Masks:
    """Return the masks to use: of the kinds `asked` for, else of all kinds if no two differ on a radiograph.

    Raise PackError where no kind is the one that is asked for.
    """
    images: dict[str, Entry] = {}
    kinds = _kinds(masks, Stems(radiographs), images)
    found = Masks()
    if asked is not None:
        chosen = [kind for kind in kinds if kind.is_called(asked)]
        if not chosen:
            there = ", ".join(kind.label for kind in kinds) or "none"
            raise PackError(f"--masks {asked}: there are no such masks (there are: {there}). Name one of these.")
        for kind in kinds:
            found.left.update({m.entry.file: NOT_CHOSEN for m in _all(kind) if kind not in chosen})
        kinds = chosen
    groups = _grouped([kind for kind in kinds if _parts(kind)])
    apart = ((a, b) for n, group in enumerate(groups) for a in group for other in groups[:n] for b in other)
    if asked is None and any(a.masks.keys() & b.masks.keys() for a, b in apart):
        listed = ", ".join(f"{kind.label} ({counted(kind.count, 'mask')})" for kind in kinds)
        found.question = (
            f"masks of several kinds lie beside the radiographs: {listed}. Say which of them are of teeth with "
            f"--masks FOLDER, such as --masks '{groups[-1][0].label}'"
        )
    found.left.update(
        {m.entry.file: m.mask.reason or PARTLESS for kind in kinds if not _parts(kind) for m in _all(kind)}
    )
    for group in groups:
        for radiograph in dict.fromkeys(r for kind in group for r in kind.masks):
            first, *others = (kind.masks[radiograph] for kind in group if radiograph in kind.masks)
            alone = len(first) == 1
            for masked in first:
                rows = partial(_rows, masked, str(images[radiograph].path), alone)
                found.annotations.append(Annotation("masks", masked.entry, rows, False, str(masked.entry.path.parent)))
            found.left.update({masked.entry.file: SAME_AREA for other in others for masked in other})
    return found


def _kinds(masks: Sequence[Masked], stems: Stems, images: dict[str, Entry]) -> list[MaskKind]:
    """Return masks with parts by kind; `images` receives their radiographs by id."""
    kinds: dict[str, MaskKind] = {}
    for masked in sorted(masks, key=lambda masked: masked.entry.name):
        stem, found = stems.of(masked.entry)
        image = nearest(found, masked.entry) if found else None
        if image is None:
            continue
        images[image.radiograph] = image
        ending = masked.entry.stem.casefold().replace(stem, "", 1).strip("_-. 0123456789")
        folders = [part for part in masked.entry.path.parts[1:-1] if not _is_any(part, stem)]
        label = "/".join([*folders, *([f"*_{ending}"] if ending else [])]) or "."
        kind = kinds.setdefault(label, MaskKind(label, ending))
        kind.masks.setdefault(image.radiograph, []).append(masked)
    return list(kinds.values())


def _is_any(folder: str, stem: str) -> bool:
    """Return whether a folder's name says nothing of a kind: a subset, a number, or the radiograph's stem."""
    words = subset_words(folder)
    return folder.casefold() == stem or words in (["train"], ["val"], ["test"]) or folder.isdecimal()


def _all(kind: MaskKind) -> Iterator[Masked]:
    return (masked for masks in kind.masks.values() for masked in masks)


def _grouped(kinds: Sequence[MaskKind]) -> list[list[MaskKind]]:
    """Return kinds in groups that cover the same areas, in each the one first that tells most instances apart."""
    groups: list[list[MaskKind]] = []
    for kind in kinds:
        group = next((group for group in groups if any(_same_area(kind, other) for other in group)), None)
        if group is None:
            groups.append([kind])
        else:
            group.append(kind)
    for group in groups:
        group.sort(key=lambda kind: (-kind.count / len(kind.masks), -_parts(kind) / len(kind.masks)))
    return groups


def _parts(kind: MaskKind) -> int:
    return sum(int((masked.mask.areas >= masked.mask.smallest).sum()) for masked in _all(kind))


def _same_area(one: MaskKind, other: MaskKind) -> bool:
    """Return whether the unions of two kinds' masks are equal on most radiographs that both cover."""
    both = one.masks.keys() & other.masks.keys()
    equal = 0
    for radiograph in both:
        first, second = (_union(kind.masks[radiograph]) for kind in (one, other))
        area = max(first.sum(), second.sum())
        equal += bool(np.abs(first - second).sum() <= _EQUAL * area)
    return bool(both) and equal >= _MOSTLY * len(both)


def _union(masks: Sequence[Masked]) -> np.ndarray:
    covers = [masked.mask.cover.astype(np.float32) for masked in masks if masked.mask.cover.size]
    return np.minimum(np.sum(covers, axis=0), 255) if covers else np.zeros((1, 1), np.float32)


def _rows(masked: Masked, image: str, alone: bool) -> Iterator[Row]:
    """Yield a row a part, numbered from 1; of a mask among several of its radiograph one for all its parts.

    Such a mask shows one tooth. But where none of its parts is most of it, it shows several.
    """
    mask = masked.mask
    if mask.reason:
        raise FormatError(mask.reason)
    large = mask.areas >= mask.smallest
    if not alone and large.any() and len(set(mask.values)) == 1 and mask.areas.max() * 2 >= mask.areas[large].sum():
        x0, y0 = mask.boxes[large][:, :2].min(0)
        x1, y1 = mask.boxes[large][:, 2:].max(0)
        boxes: Mapping[int, tuple[np.ndarray, bool]] = {0: (np.array((x0, y0, x1, y1)), True)}
    else:
        boxes = {n: (box, bool(is_large)) for n, (box, is_large) in enumerate(zip(mask.boxes, large, strict=True))}
    for number, (box, is_large) in boxes.items():
        x0, y0, x1, y1 = (float(c) for c in box)
        labels = {} if (value := mask.values[number]) is None else {"class": value}
        reason = "" if is_large else "a speck of the mask, under 0.01 % of its area"
        yield Row(number + 1, (x0, y0, x1, y1), labels, image, stated=mask.size, reason=reason)
