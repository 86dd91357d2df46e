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

    def named(self, name: str) -> Entry | None:
        """The image that an annotation calls `name`: a path's end, a file name or a stem."""
        parts = PurePosixPath(name.strip().replace("\\", "/")).parts
        for start in range(len(parts)):
            found = self._by_name.get("/".join(parts[start:]), [])
            if len(found) == 1:
                return found[0]
        return None
