"""The first pass over the sources: every file entered in the ledger, images and annotation texts told apart."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from data_shards.errors import MemberError
from data_shards.ids import Key
from data_shards.ledger import Ledgers
from data_shards.member import Member
from data_shards.radiograph import looks_like_image
from data_shards.sources import Source

NEITHER = "not a radiograph or an annotation"
ANNOTATION_SUFFIXES = (".txt", ".csv", ".tsv", ".yaml", ".yml", ".names")
_MAX_TEXT_BYTES = 256 << 20  # a table of three million boxes


class Entry(NamedTuple):
    """A file: its source, its name (`label/member`, used for ids and never written) and its ids."""

    source: int
    name: str
    file: str
    radiograph: str

    @property
    def stem(self) -> str:
        """Its name without folders and suffix."""
        return PurePosixPath(self.name).stem

    @property
    def place(self) -> tuple[tuple[str, ...], str]:
        """Folders and stem, with `images` and `labels` folders taken out: equal for an image and its YOLO file."""
        path = PurePosixPath(self.name)
        return tuple(p for p in path.parts[:-1] if p.lower() not in ("images", "labels")), path.stem


class Text(NamedTuple):
    """A file that may hold annotations, with its text."""

    entry: Entry
    text: str

    @property
    def suffix(self) -> str:
        """Its suffix in lower case, such as `.csv`."""
        return PurePosixPath(self.entry.name).suffix.lower()


@dataclass
class Inventory:
    """What the sources hold."""

    images: list[Entry] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    others: list[Entry] = field(default_factory=list)
    """Files that no crop can come of: for the table of ids, which tells their owner what was rejected."""


def take_inventory(sources: Iterable[tuple[int, Source, Iterable[Member]]], key: Key, ledgers: Ledgers) -> Inventory:
    """Read the heads of all members, and annotation texts whole. Every one enters the `files` ledger.

    `sources` gives each source's number, itself and its members (through which a progress bar may look).
    """
    inventory = Inventory()
    for number, source, members in sources:
        try:
            for member in members:
                name = source.name_of(member.name)
                entry = Entry(number, name, key.id("file", name), key.id("radiograph", name))
                ledgers.see("files", entry.file)
                _enter(entry, member, inventory, ledgers)
        except MemberError as error:  # the rest of the archive cannot be reached: one line stands for it
            rest = key.id("file", source.name_of(""))
            ledgers.reject("files", rest, str(error))
    return inventory


def _enter(entry: Entry, member: Member, inventory: Inventory, ledgers: Ledgers) -> None:
    try:
        annotation = member.name.lower().endswith(ANNOTATION_SUFFIXES)
        head = member.head()
        if looks_like_image(head, member.name):
            inventory.images.append(entry)
            ledgers.see("radiographs", entry.radiograph)
        elif annotation and b"\0" not in head:
            inventory.texts.append(Text(entry, member.read(_MAX_TEXT_BYTES).decode("utf-8-sig", "replace")))
        else:
            inventory.others.append(entry)
            ledgers.reject("files", entry.file, NEITHER if head else "an empty file")
    except MemberError as error:
        inventory.others.append(entry)
        ledgers.reject("files", entry.file, str(error))
