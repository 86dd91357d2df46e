"""Why annotations find none of their radiographs: an error for the terminal, which may show names."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from data_shards.annotations.boxes import BoxPlan
from data_shards.annotations.image_matcher import ImageFinder
from data_shards.errors import PackError
from data_shards.sources.inventory import Entry


def check_matched(plan: BoxPlan, images: Sequence[Entry], finder: ImageFinder) -> None:
    """Raise PackError where there are radiographs and annotations, and no annotation is about any of them."""
    if plan.boxes or plan.orphan is None or not images:
        return
    annotation, name = plan.orphan
    image = images[0].path
    called = (
        f"{annotation.name} is about {name}" if name else f"{annotation.name} lies beside no radiograph of its name"
    )
    raise PackError(
        f"no radiograph matches the annotations ({called}, and a radiograph is called {image}). "
        f"{_cause(name or annotation.stem, images, finder)}"
    )


def _cause(name: str, images: Sequence[Entry], finder: ImageFinder) -> str:
    same = finder.candidates(name)
    if len(same) > 1:
        return (
            f"Several radiographs have that name ({same[0].path}, {same[1].path}): put each annotation file into the "
            "folder of its images, or name it after that folder."
        )
    stem, stems = PurePosixPath(name.replace("\\", "/")).stem, [image.stem for image in images]
    if not stem.isascii() or not all(one.isascii() for one in stems):
        return "One side is probably in a code page that is not known here: pack an archive with names in UTF-8."
    if any(stem in one or one in stem for one in stems if one):
        return "One side has a prefix or suffix that the other lacks: rename one of them."
    return "They are probably of two different exports: pack the images that were annotated, under their names."
