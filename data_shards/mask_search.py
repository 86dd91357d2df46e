"""Masks among the images of the sources: told by their relation to a radiograph and by what they show."""

import re
from collections.abc import Iterable, Iterator, Sequence

from data_shards.errors import MemberError
from data_shards.ids import Key
from data_shards.inventory import Entry, Inventory, Masked, list_files
from data_shards.ledger import Ledgers
from data_shards.masks import MAP, read_mask
from data_shards.member import Member
from data_shards.sources import Source

_DIVIDERS = re.compile(r"[_\-. ]+")
_READ_ALL = 2000
"""Candidates up to which all are read at once; of more, some of each folder first."""
_TRIED = 3


def take_inventory(
    sources: Iterable[tuple[int, Source, Iterable[Member]]], key: Key, ledgers: Ledgers, annotations: bool = False
) -> Inventory:
    """List all files (`list_files`), and tell masks from radiographs, which enter their ledger."""
    opened: list[tuple[int, Source]] = []

    def noted() -> Iterator[tuple[int, Source, Iterable[Member]]]:
        for number, source, members in sources:
            opened.append((number, source))
            yield number, source, members

    inventory = list_files(noted(), key, ledgers, annotations)
    search_masks(inventory, opened)
    for image in inventory.images:
        ledgers.see("radiographs", image.radiograph)
    return inventory


def search_masks(inventory: Inventory, sources: Sequence[tuple[int, Source]]) -> None:
    """Move the masks among an inventory's images to its masks.

    An image is a mask if its name is related to that of another image, and it has few values; or if its name says that
    it is one. Only images that are compressed as masks are, and have such a relation, are read.
    """
    stems = _by_stem(inventory.images)
    possible = (image for image in inventory.images if image.names_mask or image.radiograph in inventory.sparse)
    candidates = [image for image in possible if _related(image, stems)]
    if len(candidates) > _READ_ALL:
        tried = list(_some_of_each_folder(candidates))
        if not any(_is_mask(masked) for masked in _read(tried, sources)):
            candidates = [image for image in candidates if image.names_mask]
    masks = {masked.entry.file: masked for masked in _read(candidates, sources) if _is_mask(masked)}
    pictures = [image for image in inventory.images if image.file not in masks]
    alone = _by_stem(pictures)
    for masked in list(masks.values()):  # what is no mask by itself is one only beside a radiograph
        if not masked.mask.drawn and not any(stem in alone for stem in stems_of(masked.entry)):
            del masks[masked.entry.file]
    inventory.masks += masks.values()
    inventory.images = [image for image in inventory.images if image.file not in masks]
    inventory.sparse.clear()


def stems_of(mask: Entry) -> Iterator[str]:
    """Yield the stems that the radiograph of a mask may have, the likeliest first, in small letters.

    That is its own; what stands before or after a divider in it (`7_mask`, `7_2`, `mask-7`); its folder's name.
    """
    stem = mask.stem.casefold()
    yield stem
    cuts = [match.span() for match in _DIVIDERS.finditer(stem)]
    yield from (stem[:start] for start, _ in reversed(cuts) if start)
    yield from (stem[end:] for _, end in cuts if end < len(stem))
    if len(mask.path.parts) > 2:
        yield mask.path.parts[-2].casefold()


def _by_stem(images: Iterable[Entry]) -> dict[str, list[Entry]]:
    stems: dict[str, list[Entry]] = {}
    for image in images:
        stems.setdefault(image.stem.casefold(), []).append(image)
    return stems


def _related(image: Entry, stems: dict[str, list[Entry]]) -> bool:
    own, *others = stems_of(image)
    return len(stems[own]) > 1 or any(stem in stems for stem in others)


def _some_of_each_folder(candidates: Iterable[Entry]) -> Iterator[Entry]:
    tried: dict[tuple[str, str], int] = {}
    for image in candidates:
        place = str(image.path.parent), image.path.suffix
        tried[place] = tried.get(place, 0) + 1
        if tried[place] <= _TRIED:
            yield image


def _read(candidates: Sequence[Entry], sources: Sequence[tuple[int, Source]]) -> Iterator[Masked]:
    for number, source in sources:
        wanted = {image.name: image for image in candidates if image.source == number}
        try:
            for member in source.members() if wanted else ():
                if entry := wanted.pop(source.name_of(member.name), None):
                    try:
                        yield Masked(entry, read_mask(member.read()))
                    except MemberError:  # the pass that converts will say why
                        continue
        except MemberError:  # the source ends early, as it did before
            continue


def _is_mask(masked: Masked) -> bool:
    if masked.entry.names_mask:
        return True
    mask = masked.mask
    return mask.reason == MAP or mask.drawn
