"""What came of each source of a pack: its share of the crops, under its id."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from data_shards.pack.crop_job import Frame
from data_shards.pseudonyms import Key
from data_shards.sources.inventory import Entry
from data_shards.sources.source import Source


def source_shares(
    sources: Sequence[Source], entries: Iterable[Entry], frames: Iterable[Frame], key: Key
) -> list[dict[str, Any]]:
    """For each source, by id: its `files` (all), and the `radiographs` and `crops` that are used of it.

    `entries` are all files (some twice, perhaps), `frames` the radiographs that are used.
    """
    source_of = {entry.file: entry.source for entry in entries}
    files = Counter(source_of.values())
    radiographs, crops = Counter[int](), Counter[int]()
    for frame in frames:
        number = source_of[frame.file]
        radiographs[number] += 1
        crops[number] += frame.samples
    shares = [
        {"id": source_id(key, source), "files": files[n], "radiographs": radiographs[n], "crops": crops[n]}
        for n, source in enumerate(sources)
    ]
    return sorted(shares, key=lambda share: str(share["id"]))


def source_id(key: Key, source: Source) -> str:
    """The id of a source: of its label, wherever it lies."""
    return key.id("source", source.label)
