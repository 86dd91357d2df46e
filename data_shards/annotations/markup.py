"""Parse JSON, XML and rows of unknown origin: damage and danger become a FormatError, never a traceback."""

import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from data_shards.annotations.base import FormatError


def parse_json(text: str) -> Any:
    """Return the document in a JSON text. Raise FormatError where it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError("damaged JSON: it cannot be read to its end") from None


def parse_xml(text: str) -> ElementTree.Element:
    """Return the root of an XML text. Raise FormatError where it is damaged or declares a document type."""
    if "<!DOCTYPE" in text:  # the one place where entities can be declared, small ones that grow and outer ones alike
        raise FormatError("XML with a document type, which is not read as it may do harm: remove it")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError):
        raise FormatError("damaged XML: it cannot be read to its end") from None


def rows_of(text: str) -> Iterator[tuple[int, str]]:
    """Return the rows of a text that are not blank, with their numbers from 1."""
    return ((n, row) for n, row in enumerate(text.splitlines(), 1) if row.strip())


def mapping(value: Any) -> dict[str, Any]:
    """Return an object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects in a list; an empty list for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
