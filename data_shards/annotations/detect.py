"""Which files hold annotations, and of which kind: told by their content."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from data_shards.annotations.base import Annotation
from data_shards.annotations.choices import Choices
from data_shards.annotations.class_list import class_list
from data_shards.annotations.formats.coco import read_coco
from data_shards.annotations.formats.csv_table import Table, places_unread, read_table
from data_shards.annotations.formats.cvat import read_cvat
from data_shards.annotations.formats.label_studio import read_label_studio
from data_shards.annotations.formats.labelme import read_labelme
from data_shards.annotations.formats.supervisely import read_supervisely
from data_shards.annotations.formats.unsupported import foreign_format, labels_whole_images
from data_shards.annotations.formats.via import read_via
from data_shards.annotations.formats.voc import read_voc
from data_shards.annotations.image_matcher import ImageFinder
from data_shards.annotations.masks.kinds import read_masks
from data_shards.annotations.number_texts import read_numbers
from data_shards.sources.inventory import Inventory, Text

READERS: tuple[Callable[[Text, Collection[str]], Annotation | None], ...] = (
    read_coco,
    read_labelme,
    read_cvat,
    read_label_studio,
    read_via,
    read_supervisely,
    read_voc,
)
"""Readers of files that say by themselves what they are. Each returns None for any other file."""
_LABELS = "labels of whole images", "write a table with the columns image and class"
_TABLE = "a table with boxes in unknown columns", "name them image, x0, y0, x1, y1, or export the tool's JSON"
TOOLS = ("labelme", "cvat", "label_studio", "via", "supervisely")
"""Kinds of annotations as annotation tools save them."""
KINDS = ("coco", *TOOLS, "csv", "voc", "yolo", "lines", "masks")
"""Kinds of annotations with boxes. Where several cover as many radiographs, the first counts: those that name their
radiographs before those that are found beside them, and masks, which seldom say which tooth it is, last."""


@dataclass
class Recognised:
    """What was found. `boxes` goes by kind; `whole` are tables that label whole images; `tables` all that name images.

    `unread` are texts that look like annotations and are not read, each with its format's name and what to do.
    `left` gives the reason of masks that do not count, by file, and `mask_question` says between which kinds of masks
    the user must choose. `lists` are class lists, and `questions` what must be settled of texts that can be read in two
    ways.
    """

    boxes: dict[str, list[Annotation]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    whole: list[Table] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    mask_question: str = ""
    lists: list[Text] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    unread: list[tuple[Text, str, str]] = field(default_factory=list)

    def add(self, annotation: Annotation) -> None:
        """Enter a file with boxes."""
        self.boxes.setdefault(annotation.kind, []).append(annotation)


def recognise(
    sought: Inventory, lists: Iterable[Text], finder: ImageFinder, choices: Choices, forced: str
) -> Recognised:
    """Go through the texts and masks `sought`, in the order of their names.

    `lists` are texts among which class lists may be, `forced` a kind of KINDS that is wanted (or nothing), which
    decides where a text can be read in two ways.
    """
    found = Recognised(lists=[text for text in lists if class_list(text)])
    numbers: list[Text] = []
    for text in sorted(sought.texts, key=lambda text: text.entry.name):
        annotation = next((known for reader in READERS if (known := reader(text, choices.labels)) is not None), None)
        if annotation is not None:
            found.add(annotation)
        elif class_list(text):
            continue
        elif (table := read_table(text)) is not None and table.place:
            found.tables.append(table)
            found.add(table.annotation(choices.labels))
        elif places_unread(text):
            found.tables += [table] if table else []  # it may say whose the images are
            found.unread.append((text, *_TABLE))
        elif table is not None:
            found.tables.append(table)
            found.whole += [table] if table.whole(choices.labels) else []
        elif (unread := foreign_format(text)) is not None:
            found.unread.append((text, *unread))
        elif labels_whole_images(text, finder):
            found.unread.append((text, *_LABELS))
        else:
            numbers.append(text)
    read = read_numbers(numbers, found.lists, finder, forced if forced in ("yolo", "lines") else "")
    for annotation in read.annotations:
        found.add(annotation)
    found.questions += read.questions
    found.unread += [(text, "numbers in an unknown order", "write YOLO text or COCO JSON") for text in read.unread]
    masks = read_masks(sought.masks, finder.images, choices.masks)
    for annotation in masks.annotations:
        found.add(annotation)
    found.left, found.mask_question = masks.left, masks.question
    return found
