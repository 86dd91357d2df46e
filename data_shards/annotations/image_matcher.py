"""Which radiograph an annotation means."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import PurePosixPath

from data_shards.annotations.spelling import composed, folded, subset_words, variants
from data_shards.sources.inventory import Entry


class ImageFinder:
    """Finds the radiograph that an annotation means, by the longest name that only one radiograph has.

    Names are compared in composed form (Unicode NFC; archives made on a Mac hold decomposed ones); where nothing has a
    name as it is written, without regard to case; then as spelled in other code pages, percent-encoded or with the
    prefix of an upload; and at last without regard to the suffix.
    """

    def __init__(self, images: Iterable[Entry]) -> None:
        self.images = list(images)
        self._exact = _Names(self.images, lambda name: {composed(name)})
        self._known: tuple[str, list[Entry]] = ("", [])  # the last name, as a tooth's rows lie together

    @cached_property
    def _folded(self) -> "_Names":
        return _Names(self.images, lambda name: {folded(name)})

    @cached_property
    def _spelled(self) -> "_Names":
        return _Names(self.images, variants)

    def beside(self, annotation: Entry) -> Entry | None:
        """Return the image of an annotation file: of its stem beside it or in a twin folder, else anywhere if unique.

        `<stem>_mask` is tried as itself, then as `<stem>`.
        """
        entries = (annotation, annotation.unmasked())
        for names in self._stages():
            for entry in entries:
                if found := names.beside(entry):
                    return nearest(found, annotation)
        return None

    def named(self, name: str, annotation: Entry) -> Entry | None:
        """Return the image that an annotation file calls `name`: a path's end, a file name or a stem.

        Of several with that name it is the one that shares most folders with the file, if one does: two archives
        packed together may call their images alike, and mean their own. Of those that share as many it is the one
        whose folder the annotation file is named after (`train/7.png` of `instances_train.json`).
        """
        found = self.candidates(name)
        return nearest(found, annotation) if found else None

    def candidates(self, name: str) -> list[Entry]:
        """Return all images that have a name."""
        if self._known[0] != name:
            self._known = name, self._candidates(name)
        return self._known[1]

    def _candidates(self, name: str) -> list[Entry]:
        parts = PurePosixPath(name.strip().replace("\\", "/")).parts
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        for names in self._stages():
            if found := next((f for end in ends if (f := names.named(end))), None):
                return found
        if found := self._spelled.named(name.strip()):  # in Shift-JIS half of a character may read as a backslash
            return found
        stem = PurePosixPath(ends[-1]).stem if ends else ""  # an image that was saved in another format
        return next((f for names in self._stages() if stem and (f := names.named(stem))), [])

    def _stages(self) -> Iterable["_Names"]:
        yield self._exact
        yield self._folded
        yield self._spelled


class _Names:
    """Images by place and by name, each in all `forms` of its spelling."""

    def __init__(self, images: Iterable[Entry], forms: Callable[[str], set[str]]) -> None:
        self._forms = forms
        self._by_place: dict[str, list[Entry]] = {}
        self._by_name: dict[str, list[Entry]] = {}
        for image in images:
            for place in forms(self._place(image)):
                self._by_place.setdefault(place, []).append(image)
            path = image.path
            for form in self._whole(image):
                parts = form.split("/")
                for name in {"/".join(parts[i:]) for i in range(len(parts))}:
                    self._by_name.setdefault(name, []).append(image)
            for form in self._stems(image) - {path.name}:
                self._by_name.setdefault(form, []).append(image)

    def beside(self, annotation: Entry) -> list[Entry]:
        found = self._in(self._by_place, self._forms(self._place(annotation)))
        return found or self._in(self._by_name, self._stems(annotation))

    def named(self, name: str) -> list[Entry]:
        return self._in(self._by_name, self._forms(name))

    def _in(self, index: dict[str, list[Entry]], forms: Iterable[str]) -> list[Entry]:
        found = {image.name: image for form in forms for image in index.get(form, [])}
        return list(found.values())

    def _whole(self, entry: Entry) -> set[str]:
        raw = self._forms(entry.name) if "\\" in entry.name else set()  # it may be half of a character
        return self._forms(str(entry.path)) | raw

    def _stems(self, entry: Entry) -> set[str]:
        raw = self._forms(entry.name) if "\\" in entry.name else set()
        return self._forms(entry.stem) | {PurePosixPath(form).stem for form in raw}

    def _place(self, entry: Entry) -> str:
        folders, stem = entry.place
        return "/".join((*folders, stem))


def nearest(images: list[Entry], annotation: Entry) -> Entry | None:
    """Return the one image that shares most folders with a file, or whose folder the file is named after."""
    if len(images) == 1:
        return images[0]
    shared = [_folders_shared(image.path, annotation.path) for image in images]
    near = [image for image, count in zip(images, shared, strict=True) if count == max(shared)]
    if len(near) == 1:
        return near[0] if max(shared) > 0 else None
    named_after = [image for image in near if _is_named_after(annotation, image, near)]
    return named_after[0] if len(named_after) == 1 else None


def _is_named_after(annotation: Entry, image: Entry, others: Iterable[Entry]) -> bool:
    """Return whether a folder that only this image's path has stands in an annotation file's name or folders."""
    elsewhere = {part for other in others if other.name != image.name for part in other.path.parts[:-1]}
    own = [subset_words(part) for part in image.path.parts[:-1] if part not in elsewhere]
    path = annotation.path
    names = [subset_words(part) for part in (*path.parts[1:-1], path.stem)]
    return any(
        words and any(name[i : i + len(words)] == words for name in names for i in range(len(name))) for words in own
    )


def _folders_shared(one: PurePosixPath, other: PurePosixPath) -> int:
    """Return how many folders, from the source's label on, lead to both."""
    count = 0
    for a, b in zip(one.parts[:-1], other.parts[:-1], strict=False):
        if a != b:
            break
        count += 1
    return count
