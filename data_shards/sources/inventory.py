"""The first pass over the sources: every file entered in the ledger; images, masks and annotation texts told apart."""

import codecs
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from data_shards.decode.mask_parts import Mask, may_be_mask, read_mask
from data_shards.decode.radiograph import looks_like_image
from data_shards.errors import MemberError
from data_shards.ledger import Ledgers
from data_shards.pseudonyms import Key
from data_shards.sources.member import Member
from data_shards.sources.source import Source

NEITHER = "not a radiograph or an annotation"
ANNOTATION_SUFFIXES = (".txt", ".csv", ".tsv", ".yaml", ".yml", ".names", ".json", ".xml")
"""Texts with these names are read whatever they begin with; others where they begin as an annotation does."""
IMAGE_COLUMNS = (
    *("image", "image_path", "path", "file", "filename"),
    *("file_name", "image_name", "image_file", "img", "imagename", "imagepath", "imagefile", "img_name", "img_path"),
    *("img_file", "filepath", "file_path", "image_filename", "radiograph", "xray", "scan", "image_id", "imageid"),
)
"""Names of the column of a table that says which image a row is about; the first of them that a table has."""
MASK_FOLDERS = frozenset(
    ("mask", "masks", "segmentation", "segmentations", "seg", "labelmaps", "segmentationclass", "segmentationobject")
)
TWIN_FOLDERS = MASK_FOLDERS | {
    *("image", "images", "img", "imgs", "jpegimages", "label", "labels", "annotation", "annotations", "xml", "txt")
}
"""Folders that part the images of a set from what is known of them: left out where files are paired."""
_MASK_NAME = re.compile(r"[_-](?:mask|seg|segmentation)(\.[^./]*)?$", re.IGNORECASE)
_MAX_TEXT_BYTES = 256 << 20  # a table of three million boxes
_LARGE = 1 << 20
"""Characters beyond which a text is held only if it begins as annotations do."""
_JSON_KEYS = re.compile(
    r'"(?:annotations|completions|shapes|regions|objects|items|instances|predictions|labels|\w*bbox\w*|points|polygons?|'
    r'original_width|bounding_?[bB]ox|_via_img_metadata|data_row|className|vid|features)"\s*:'
)
_XML_TAGS = re.compile(r"<(?:annotations?|object|image|bndbox|polygon|box|track|PcGts|alto)[\s>]", re.IGNORECASE)
_EMBEDDED = re.compile(r'("imageData"\s*:\s*)"[^"]*"')
"""The radiograph itself, which LabelMe repeats in its files."""
_STARTS = re.compile(r"\s*([{\[<]|[-+]?(\d|\.\d))")  # JSON, XML, a row of numbers


class Entry(NamedTuple):
    """A file: its source, its name (`label/member`, used for ids and never written) and its ids."""

    source: int
    name: str
    file: str
    radiograph: str

    @property
    def path(self) -> PurePosixPath:
        """Its name as a path, also where an archive parts folders by backslashes."""
        return PurePosixPath(self.name.replace("\\", "/"))

    @property
    def stem(self) -> str:
        """Its name without folders and suffix."""
        return self.path.stem

    @property
    def place(self) -> tuple[tuple[str, ...], str]:
        """Folders without TWIN_FOLDERS, and the stem: equal for an image and what is known of it."""
        path = self.path
        return tuple(p for p in path.parts[:-1] if p.lower() not in TWIN_FOLDERS), path.stem

    @property
    def names_mask(self) -> bool:
        """Whether its name is a mask's: in a folder for masks or `labels`, or `<stem>_mask.<suffix>`.

        Of several such folders the innermost counts: in `segmentation/images` are images.
        """
        folders = [part for part in map(str.lower, self.path.parts[:-1]) if part in TWIN_FOLDERS]
        inside = bool(folders) and folders[-1] in MASK_FOLDERS | {"label", "labels"}
        return inside or _MASK_NAME.search(self.name) is not None

    def unmasked(self) -> "Entry":
        """Itself under the stem of the image that it would be a mask of."""
        return self._replace(name=_MASK_NAME.sub(r"\1", self.name))


class Text(NamedTuple):
    """A file that may hold annotations, with its text."""

    entry: Entry
    text: str

    @property
    def suffix(self) -> str:
        """Its suffix in lower case, such as `.csv`."""
        return self.entry.path.suffix.lower()


class Masked(NamedTuple):
    """An image that its name says is a mask, and what it shows."""

    entry: Entry
    mask: Mask


@dataclass
class Inventory:
    """What the sources hold."""

    images: list[Entry] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    masks: list[Masked] = field(default_factory=list)
    others: list[Entry] = field(default_factory=list)
    """Files that no crop can come of: for the table of ids, which tells their owner what was rejected."""
    sparse: set[str] = field(default_factory=set)
    """Radiograph ids of images with so few bytes that they may be masks, until these are found (`mask_search`)."""

    def entries(self) -> Iterable[Entry]:
        """Every file."""
        yield from self.images
        yield from (text.entry for text in self.texts)
        yield from (masked.entry for masked in self.masks)
        yield from self.others


def list_files(
    sources: Iterable[tuple[int, Source, Iterable[Member]]], key: Key, ledgers: Ledgers, annotations: bool = False
) -> Inventory:
    """Read the heads of all members, and annotation texts and masks whole. Every one enters the `files` ledger.

    `sources` gives each source's number, itself and its members (through which a progress bar may look). With
    `annotations` the sources hold annotations alone, so their images are masks.
    """
    inventory = Inventory()
    for number, source, members in sources:
        try:
            for member in members:
                name = source.name_of(member.name)
                entry = Entry(number, name, key.id("file", name), key.id("radiograph", name))
                ledgers.see("files", entry.file)
                _enter(entry, member, inventory, ledgers, annotations)
        except MemberError as error:  # the rest of the archive cannot be reached: one line stands for it
            name = source.name_of("")
            rest = Entry(number, name, key.id("file", name), key.id("radiograph", name))
            inventory.others.append(rest)
            ledgers.reject("files", rest.file, str(error))
    return inventory


def _enter(entry: Entry, member: Member, inventory: Inventory, ledgers: Ledgers, annotations: bool) -> None:
    try:
        head = member.head()
        if looks_like_image(head, member.name):
            if annotations:
                inventory.masks.append(Masked(entry, read_mask(member.read())))
            else:
                inventory.images.append(entry)
                if may_be_mask(head, member.size):
                    inventory.sparse.add(entry.radiograph)
        elif _may_annotate(head, entry):
            text = _EMBEDDED.sub(r"\1null", _decoded(member.read(_MAX_TEXT_BYTES)))
            if len(text) > _LARGE and not _annotates(text):
                inventory.others.append(entry)
                ledgers.reject("files", entry.file, NEITHER)
            else:
                inventory.texts.append(Text(entry, text))
        else:
            inventory.others.append(entry)
            ledgers.reject("files", entry.file, NEITHER if head else "an empty file")
    except MemberError as error:
        inventory.others.append(entry)
        ledgers.reject("files", entry.file, str(error))


def _may_annotate(head: bytes, entry: Entry) -> bool:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    if b"\0" in head:
        return False
    first = _decoded(head)
    return entry.path.suffix.lower() in ANNOTATION_SUFFIXES or _STARTS.match(first) is not None or _is_table(first)


def _annotates(text: str) -> bool:
    """Whether a text begins as annotations do; only those are worth holding where they are large."""
    head = text[:_LARGE]
    first = head.lstrip()[:1]
    if first in ("{", "["):
        return _JSON_KEYS.search(text) is not None
    if first == "<":
        return _XML_TAGS.search(head) is not None
    rows = [re.split(r"[,;\s]+", row.strip()) for row in head.splitlines()[:100]]
    return _is_table(head) or any(sum(map(_is_number, row)) >= 4 for row in rows)


def _is_table(text: str) -> bool:
    header = text.lstrip().partition("\n")[0].lower().replace('"', "")
    return any(name.strip() in IMAGE_COLUMNS for name in re.split(r"[,;\t]", header))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _decoded(raw: bytes) -> str:
    """Text in UTF-8, UTF-16 or cp1252, its lines ended by \\n alone."""
    return _text(raw).replace("\r\n", "\n").replace("\r", "\n")


def _text(raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as spreadsheets save "Unicode text"
        return raw.decode("utf-16", "replace")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(raw)  # a head may end within a character
    except UnicodeDecodeError:
        return raw.decode("cp1252", "surrogateescape")  # as western spreadsheets save CSV; other bytes stay as they are
