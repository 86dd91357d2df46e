"""Which radiograph an annotation means."""

import contextlib
import unicodedata
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import PurePosixPath

from data_shards.inventory import Entry


class ImageFinder:
    """Finds the radiograph that an annotation means, by the longest name that only one radiograph has.

    Names are compared in composed form (Unicode NFC; archives made on a Mac hold decomposed ones), and where nothing
    has a name as it is written, without regard to case.
    """

    def __init__(self, images: Iterable[Entry]) -> None:
        self._images = list(images)
        self._exact = _Names(self._images, _composed)

    @cached_property
    def _folded(self) -> "_Names":
        return _Names(self._images, lambda name: _composed(name).casefold())

    def beside(self, annotation: Entry) -> Entry | None:
        """The image of an annotation file: the same stem beside it or in a twin folder, else anywhere if unique.

        `<stem>_mask` is tried as itself, then as `<stem>`.
        """
        for entry in (annotation, annotation.unmasked()):
            if found := self._exact.beside(entry):
                return found[0] if len(found) == 1 else None
        for entry in (annotation, annotation.unmasked()):
            if found := self._folded.beside(entry):
                return found[0] if len(found) == 1 else None
        return None

    def named(self, name: str, annotation: Entry) -> Entry | None:
        """The image that an annotation file calls `name`: a path's end, a file name or a stem.

        Of several with that name it is the one that shares most folders with the file, if one does: two archives
        packed together may call their images alike, and mean their own.
        """
        parts = PurePosixPath(name.strip().replace("\\", "/")).parts
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        found = next((f for end in ends if (f := self._exact.named(end))), None)
        found = found or next((f for end in ends if (f := self._folded.named(end))), None)
        return _nearest(found, annotation) if found else None


def _composed(name: str) -> str:
    if name.isascii():
        return name
    with contextlib.suppress(UnicodeError):  # bytes that are no UTF-8 are of an old archive, written under Windows
        name.encode()
        return unicodedata.normalize("NFC", name)
    return name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


class _Names:
    """Images by place and by name, both in one `form`."""

    def __init__(self, images: Iterable[Entry], form: Callable[[str], str]) -> None:
        self._form = form
        self._by_place: dict[object, list[Entry]] = {}
        self._by_name: dict[str, list[Entry]] = {}
        for image in images:
            self._by_place.setdefault(self._place(image), []).append(image)
            parts = image.path.parts
            for name in {*("/".join(parts[i:]) for i in range(len(parts))), image.stem}:
                self._by_name.setdefault(form(name), []).append(image)

    def beside(self, annotation: Entry) -> list[Entry]:
        return self._by_place.get(self._place(annotation)) or self.named(annotation.stem)

    def named(self, name: str) -> list[Entry]:
        return self._by_name.get(self._form(name), [])

    def _place(self, entry: Entry) -> object:
        folders, stem = entry.place
        return tuple(map(self._form, folders)), self._form(stem)


def _nearest(images: list[Entry], annotation: Entry) -> Entry | None:
    if len(images) == 1:
        return images[0]
    shared = [_folders_shared(image.path, annotation.path) for image in images]
    nearest = [image for image, count in zip(images, shared, strict=True) if count == max(shared)]
    return nearest[0] if len(nearest) == 1 and max(shared) > 0 else None


def _folders_shared(one: PurePosixPath, other: PurePosixPath) -> int:
    """How many folders, from the source's label on, lead to both."""
    count = 0
    for a, b in zip(one.parts[:-1], other.parts[:-1], strict=False):
        if a != b:
            break
        count += 1
    return count
