"""Lists of class names beside YOLO texts: `data.yaml`, `classes.txt`, `obj.names`."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import yaml

from data_shards.sources.inventory import Entry, Text

_TASKS = {"detect": "boxes", "pose": "boxes", "segment": "outlines", "obb": "outlines"}
_LONGEST = 1 << 20


class ClassList(NamedTuple):
    """What a class list says: names by number, and of a `data.yaml` the shape of key points and the rows' reading.

    `points` are the number of key points and of values each (2, or 3 with visibility), None where it has none; `rows`
    is `boxes` or `outlines` where its `task` says which, else empty.
    """

    names: dict[int, str]
    is_yaml: bool = False
    points: tuple[int, int] | None = None
    rows: str = ""


def class_list(text: Text) -> ClassList | None:
    """Return the class list in a text; None where it is none."""
    return _class_list(text.suffix, text.entry.path.name.lower(), text.text)


def nearest(lists: Sequence[Text], entry: Entry) -> Text | None:
    """Return the list in the closest folder above a file, else the first of its source, else the first."""

    def depth(text: Text) -> tuple[int, bool]:
        folder = text.entry.path.parts[:-1]
        return len(folder) if entry.path.parts[: len(folder)] == folder else 0, text.entry.source == entry.source

    return max(lists, key=depth, default=None)


class _PlainLoader(yaml.SafeLoader):
    """YAML without merged mappings: nine of nine in each other, a few hundred bytes, are more than the memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("mappings are not merged here")


@lru_cache(maxsize=8)
def _class_list(suffix: str, name: str, text: str) -> ClassList | None:
    if suffix == ".names" or name in ("classes.txt", "labels.txt"):
        names = dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
        return ClassList(names) if names else None
    if suffix not in (".yaml", ".yml") or len(text) > _LONGEST:
        return None
    try:
        content = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    names, points = _names(content.get("names")), _points(content.get("kpt_shape"))
    if not names and not points and not isinstance(content.get("nc"), int):
        return None
    return ClassList(names, True, points, _TASKS.get(str(content.get("task")), ""))


def _names(names: Any) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        return {}
    said = {str(key): str(name) for key, name in names.items() if isinstance(name, (str, int))}
    return {int(key): name for key, name in said.items() if key.isdecimal()}


def _points(shape: Any) -> tuple[int, int] | None:
    if isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape):
        count, values = shape
        return (count, values) if count > 0 and values in (2, 3) else None
    return None
