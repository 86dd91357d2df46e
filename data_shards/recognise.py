"""Which files hold annotations, and of which kind: told by their content."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from data_shards.annotation import Annotation, FormatError, Row
from data_shards.coco import read_coco
from data_shards.cvat import read_cvat
from data_shards.finder import ImageFinder
from data_shards.foreign import foreign_format
from data_shards.inventory import Inventory, Masked, Text
from data_shards.label_studio import read_label_studio
from data_shards.labelme import read_labelme
from data_shards.lines import parse_line, read_lines
from data_shards.supervisely import read_supervisely
from data_shards.tables import Table, read_table
from data_shards.via import read_via
from data_shards.voc import read_voc
from data_shards.yolo import RowError, class_names, parse_row, read_yolo, rows_of

READERS: tuple[Callable[[Text, Collection[str]], Annotation | None], ...] = (
    *(read_coco, read_labelme, read_cvat, read_label_studio, read_via, read_supervisely, read_voc),
)
"""Readers of files that say by themselves what they are. Each returns None for any other file."""
TOOLS = ("labelme", "cvat", "label_studio", "via", "supervisely")
"""Kinds of annotations as annotation tools save them."""
KINDS = ("coco", *TOOLS, "csv", "voc", "yolo", "lines", "masks")
"""Kinds of annotations with boxes. Where several cover as many radiographs, the first counts: those that name their
radiographs before those that are found beside them, and masks, which seldom say which tooth it is, last."""
_JUDGED_ROWS = 100  # of a text of numbers: a file is of one kind throughout


@dataclass
class Recognised:
    """What was found. `boxes` goes by kind; `whole` are tables that label whole images; `tables` all that name images.

    `unread` are texts that look like annotations and are not read, each with its format's name and what to do.
    `lists` are class lists, and `unsure` counts texts that can be read as YOLO and as lines alike.
    """

    boxes: dict[str, list[Annotation]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    whole: list[Table] = field(default_factory=list)
    lists: list[Text] = field(default_factory=list)
    unsure: int = 0
    unread: list[tuple[Text, str, str]] = field(default_factory=list)

    def add(self, annotation: Annotation) -> None:
        """Enter a file with boxes."""
        self.boxes.setdefault(annotation.kind, []).append(annotation)


def recognise(
    sought: Inventory, lists: Iterable[Text], finder: ImageFinder, asked: Collection[str], forced: str
) -> Recognised:
    """Go through the texts and masks `sought`, in the order of their names.

    `lists` are texts among which class lists may be, `asked` columns to keep, `forced` a kind of KINDS that is wanted
    (or nothing), which decides where a text can be read in two ways.
    """
    found = Recognised(lists=[text for text in lists if class_names(text)])
    numbers: list[Text] = []
    for text in sorted(sought.texts, key=lambda text: text.entry.name):
        annotation = next((read for reader in READERS if (read := reader(text, asked)) is not None), None)
        if annotation is not None:
            found.add(annotation)
        elif class_names(text):
            continue
        elif (table := read_table(text)) is not None:
            found.tables.append(table)
            if table.place:
                found.add(table.annotation(asked))
            elif table.whole(asked):
                found.whole.append(table)
        elif (unread := foreign_format(text)) is not None:
            found.unread.append((text, *unread))
        else:
            numbers.append(text)
    _add_numbers(numbers, found, finder, forced)
    for masked in sorted(sought.masks, key=lambda masked: masked.entry.name):
        if finder.beside(masked.entry) is not None:
            found.add(
                Annotation("masks", masked.entry, partial(_mask_rows, masked), True, str(masked.entry.path.parent))
            )
    return found


def _add_numbers(texts: Sequence[Text], found: Recognised, finder: ImageFinder, forced: str) -> None:
    """Texts of numbers as YOLO rows or as lines of corners.

    A text is what more of its rows can only be; one that says nothing by itself (blank, damaged, or of rows that can be
    both) follows most others, and YOLO where there are none.
    """
    judged = [(text, _judged(text)) for text in texts]
    if not any(finder.beside(text.entry) for text, kind in judged if kind == "lines"):  # numbers about something else
        judged = [(text, kind) for text, kind in judged if kind != "lines"]
    counts = {kind: sum(k == kind for _, k in judged) for kind in ("yolo", "lines", "both")}
    if not any(counts.values()):
        return
    usual = "lines" if counts["lines"] > counts["yolo"] else "yolo"
    found.unsure = counts["both"] if not counts["yolo"] and not counts["lines"] and not forced else 0
    for text, kind in judged:
        if kind in ("", "both"):
            if kind == "" and (text.suffix != ".txt" or finder.beside(text.entry) is None):
                continue
            kind = usual
        kind = forced if forced in ("yolo", "lines") else kind
        found.add(read_lines(text) if kind == "lines" else read_yolo(text, found.lists))


def _judged(text: Text) -> str:
    """`yolo`, `lines`, `both` or nothing: what a text's rows are."""
    yolo = lines = both = 0
    for _, row in islice(rows_of(text.text), _JUDGED_ROWS):
        is_yolo, is_line = _is_yolo(row), _is_line(row)
        both += is_yolo and is_line
        yolo += is_yolo and not is_line
        lines += is_line and not is_yolo
    if lines > yolo:
        return "lines"
    return "yolo" if yolo else "both" if both else ""


def _is_yolo(row: str) -> bool:
    try:
        parse_row(row)
    except RowError:
        return False
    return True


def _is_line(row: str) -> bool:
    found = parse_line(row)
    return found is not None and found[0][0] < found[0][2] and found[0][1] < found[0][3]


def _mask_rows(masked: Masked) -> Iterator[Row]:
    """A row a part, numbered from 1."""
    mask = masked.mask
    if mask.reason:
        raise FormatError(mask.reason)
    for number, (box, area, value) in enumerate(zip(mask.boxes, mask.areas, mask.values, strict=True), 1):
        x0, y0, x1, y1 = (float(c) for c in box)
        labels = {} if value is None else {"class": value}
        reason = "" if area >= mask.smallest else "a speck of the mask, under 0.01 % of its area"
        yield Row(number, (x0, y0, x1, y1), labels, stated=mask.size, reason=reason)
