"""The layout is what docs/architecture.md shows; `lint-imports` checks which way imports run."""

import importlib.util
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
architecture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(architecture)


def test_the_picture_is_that_of_the_imports():
    page = architecture.PAGE.read_text(encoding="utf-8")
    assert page == architecture.page_with_picture(page), "run `python docs/architecture.py`"


def test_no_folder_holds_more_than_16_modules():
    folders = Counter(path.parent for path in architecture.modules().values() if path.name != "__init__.py")
    assert max(folders.values()) <= 16, folders.most_common(1)


def test_arrows_that_follow_from_others_are_left_out():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}
