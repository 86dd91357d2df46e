"""Which radiograph an annotation means."""

from collections.abc import Iterable
from pathlib import PurePosixPath

from data_shards.inventory import Entry


class ImageFinder:
    """Finds the radiograph that an annotation means, by the longest name that only one radiograph has."""

    def __init__(self, images: Iterable[Entry]) -> None:
        self._by_place: dict[object, list[Entry]] = {}
        self._by_name: dict[str, list[Entry]] = {}
        for image in images:
            self._by_place.setdefault(image.place, []).append(image)
            parts = image.path.parts
            for name in {*("/".join(parts[i:]) for i in range(len(parts))), image.stem}:
                self._by_name.setdefault(name, []).append(image)

    def beside(self, annotation: Entry) -> Entry | None:
        """The image of an annotation file: the same stem beside it or in a twin folder, else anywhere if unique.

        `<stem>_mask` is tried as itself, then as `<stem>`.
        """
        for entry in (annotation, annotation.unmasked()):
            if found := self._by_place.get(entry.place) or self._by_name.get(entry.stem, []):
                return found[0] if len(found) == 1 else None
        return None

    def named(self, name: str, annotation: Entry) -> Entry | None:
        """The image that an annotation file calls `name`: a path's end, a file name or a stem.

        Of several with that name it is the one that shares most folders with the file, if one does: two archives
        packed together may call their images alike, and mean their own.
        """
        parts = PurePosixPath(name.strip().replace("\\", "/")).parts
        for start in range(len(parts)):
            if found := self._by_name.get("/".join(parts[start:]), []):
                return _nearest(found, annotation)
        return None


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
