"""Masks among the images of the sources: told by their relation to a radiograph and by what they show."""

import re
from collections.abc import Iterable, Iterator, Sequence

from data_shards.decode.mask_parts import MAP, read_mask
from data_shards.errors import MemberError
from data_shards.ledger import Ledgers
from data_shards.pseudonyms import Key
from data_shards.sources.inventory import Entry, Inventory, Masked, list_files
from data_shards.sources.member import Member
from data_shards.sources.source import Source

_DIVIDERS = re.compile(r"[_\-. ]+")
_COUNTED = re.compile(r"[^\W\d_]+(\d+)")
_ROLE = re.compile(
    r"(?<![^\W\d_])(?:images?|img|xray|x-ray|radiographs?|scan|original|orig|raw|input|photo|opg)(?![^\W\d_])"
)
"""Words of a radiograph's name that its masks do not have."""
_READ_ALL = 200
"""Candidates up to which all are read at once; of more, as many first, some of each folder."""
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

    An image is a mask if it has few values, and either its name is related to that of another image or it says that it
    is one; with both, any image is. Only images that are compressed as masks are, or have such a name, are read.
    """
    stems = Stems(inventory.images)
    sparse = (image for image in inventory.images if image.names_mask or image.radiograph in inventory.sparse)
    candidates = [image for image in sparse if image.names_mask or stems.has(image)]
    if len(candidates) > _READ_ALL:
        tried = list(_some_of_each_folder(candidates))
        tried = tried[:: -(-len(tried) // _READ_ALL)]
        if not any(_is_mask(masked) for masked in _read(tried, sources)):
            candidates = [image for image in candidates if image.names_mask]
    masks = {masked.entry.file: masked for masked in _read(candidates, sources) if _is_mask(masked)}
    pictures = [image for image in inventory.images if image.file not in masks]
    alone = Stems(pictures)
    for masked in list(masks.values()):  # what is no mask by itself is one only beside a radiograph
        if not masked.mask.drawn and not alone.has(masked.entry):
            del masks[masked.entry.file]
    inventory.masks += masks.values()
    inventory.images = [image for image in inventory.images if image.file not in masks]
    inventory.sparse.clear()


class Stems:
    """Images by their stems, also without what calls them images (`7_image`, `img_7`); `image.png` by its folder."""

    def __init__(self, images: Iterable[Entry]) -> None:
        self._images: dict[str, list[Entry]] = {}
        for image in images:
            for stem in {image.stem.casefold(), _without_role(image)}:
                self._images.setdefault(stem, []).append(image)

    def of(self, mask: Entry) -> tuple[str, list[Entry]]:
        """Return the stem by which other images have a mask's name, and these; the longest such part of its own.

        Nothing, where its name is that of one image and its folder's name that of another (`7/11.png`).
        """
        known = {stem: found for stem in _parts_of(mask) if (found := self._others(stem, mask))}
        if not known:
            return "", []
        stem, found = next(iter(known.items()))
        folder = mask.path.parts[-2].casefold()
        if folder in known and not {image.name for image in known[folder]} & {image.name for image in found}:
            return "", []
        same = [image for image in found if image.place == (mask.place[0], image.place[1])]
        return stem, same or found

    def has(self, mask: Entry) -> bool:
        """Return whether any other image has a mask's name or a part of it."""
        return any(self._others(stem, mask) for stem in _parts_of(mask))

    def _others(self, stem: str, mask: Entry) -> list[Entry]:
        return [image for image in self._images.get(stem, []) if image.name != mask.name]


def _parts_of(mask: Entry) -> Iterator[str]:
    """Yield the stems that the radiograph of a mask may have, the likeliest first, in small letters.

    That is its own; what stands before or after a divider in it (`7_mask`, `7_2`, `mask-7`) or after a word (`mask7`);
    its folder's name.
    """
    stem = mask.stem.casefold()
    yield stem
    cuts = [match.span() for match in _DIVIDERS.finditer(stem)]
    yield from (stem[:start] for start, _ in reversed(cuts) if start)
    yield from (stem[end:] for _, end in cuts if end < len(stem))
    if counted := _COUNTED.fullmatch(stem):
        yield counted[1]
    if len(mask.path.parts) > 2:
        yield mask.path.parts[-2].casefold()


def _without_role(image: Entry) -> str:
    stem = image.stem.casefold()
    bare = _ROLE.sub("", stem).strip("_-. ")
    return bare or (image.path.parts[-2].casefold() if len(image.path.parts) > 2 else stem)


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
    return masked.entry.names_mask or masked.mask.reason == MAP or masked.mask.drawn
