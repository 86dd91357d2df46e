"""The arrows between the rooms run one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARROWS = {
    "augment": set(),
    "data_shards": set(),
    "pretrain": {"augment", "data_shards"},
    "downstream": {"augment", "data_shards", "pretrain"},  # augment: `fit`, the resize that goes with the weights
    "launch": set(),
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_only_the_rooms_it_may(room):
    modules = [p for p in (ROOT / room).rglob("*.py") if p.name != "__main__.py"]  # a command may use any room
    assert modules
    for path in modules:
        strangers = imported(path) & ARROWS.keys() - {room} - ARROWS[room]
        assert not strangers, f"{path.relative_to(ROOT)} imports {', '.join(strangers)}"
