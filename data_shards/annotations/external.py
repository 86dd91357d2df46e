"""Annotations that `--boxes FILE` names: inside the sources, or apart from them."""

import glob
from dataclasses import replace
from pathlib import Path

from data_shards.annotations.box_plan import CHOICES
from data_shards.annotations.masks.search import take_inventory
from data_shards.errors import PackError
from data_shards.ledger import Ledgers
from data_shards.pseudonyms import Key
from data_shards.sources.inventory import Entry, Inventory
from data_shards.sources.limits import SPOOL_GB
from data_shards.sources.source import Source, open_sources


def given_annotations(
    boxes: str, sources: list[Source], inventory: Inventory, key: Key, ledgers: Ledgers, spool_gb: float = SPOOL_GB
) -> Inventory:
    """The annotations at `boxes`; nothing where it is one of CHOICES.

    Those inside a source are in its inventory already. Others are read, entered in the ledger, and their sources are
    added to `sources`. Raises PackError where there is nothing.
    """
    if boxes in CHOICES:
        return Inventory()
    inside = _inside(Path(boxes), sources, inventory)
    if inside.texts or inside.masks:
        return inside
    if not Path(boxes).exists() and not glob.has_magic(boxes):
        raise PackError(
            f"no boxes at {boxes}: give {', '.join(CHOICES)}, or a table, label file, folder or archive with them"
        )
    apart = open_sources([boxes], spool_gb)
    labels = {source.label for source in sources}
    first = len(sources)
    sources += [replace(s, label=f"{s.label}#boxes") if s.label in labels else s for s in apart]
    numbered = list(enumerate(sources))[first:]
    return take_inventory(((n, s, s.members()) for n, s in numbered), key, ledgers, annotations=True)


def _inside(boxes: Path, sources: list[Source], inventory: Inventory) -> Inventory:
    """What lies at `boxes` where that is one of the sources or lies in one."""
    wanted = boxes.resolve()

    def lies_there(entry: Entry) -> bool:
        place = sources[entry.source].path.resolve()
        if not wanted.is_relative_to(place):
            return False
        if place.is_dir():
            place /= entry.name.removeprefix(f"{sources[entry.source].label}/")
        return place.is_relative_to(wanted)

    return Inventory(
        texts=[text for text in inventory.texts if lies_there(text.entry)],
        masks=[masked for masked in inventory.masks if lies_there(masked.entry)],
    )
