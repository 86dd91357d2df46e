"""Draw docs/architecture.md's picture from the imports: `python docs/architecture.py` writes it anew.

An arrow points from a part to a part that it imports. Arrows that follow from others are left out.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("launch", "downstream", "pretrain", "augment", "data_shards", "tooth_foundations")
FLAT = ("launch", "augment")  # without sub-packages: one box each
Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name; a package is its `__init__`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Names of the project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def part_of(name: str, path: Path) -> str:
    """The box of a module: its package if that is flat, its sub-package, or the module itself."""
    package, *rest = name.split(".")
    if package in FLAT:
        return package
    if len(rest) > 1 or (rest and path.name == "__init__.py"):
        return f"{package}.{rest[0]}"
    return f"{package}.{rest[0] if rest else '__init__'}"


def parts() -> tuple[Graph, dict[str, str]]:
    """What each part imports of the others, and its label; the modules at the bottom of a package are one part."""
    known = modules()
    graph: Graph = {}
    for name, path in known.items():
        others = {part_of(other, known[other]) for other in imported(path, known)}
        graph.setdefault(part_of(name, path), set()).update(others)
    folders = {part_of(name, path) for name, path in known.items() if name.count(".") > 1}
    box, labels = {}, {}
    for part, others in sorted(graph.items()):
        package, _, name = part.partition(".")
        at_bottom = name and part not in folders and not any(same(part, other) for other in others & folders)
        if at_bottom and name == "__init__":
            continue  # a docstring
        box[part] = f"{package}.bottom" if at_bottom else part
        labels[box[part]] = f"{labels[box[part]]}, {name}" if box[part] in labels else name
    result: Graph = {part: set() for part in labels}
    for part in box:
        result[box[part]] |= {box[other] for other in graph[part] if other in box} - {box[part]}
    return result, labels


def same(part: str, other: str) -> bool:
    """Whether two parts are of one package."""
    return part.partition(".")[0] == other.partition(".")[0]


def reduced(graph: Graph) -> Graph:
    """The graph without arrows that follow from others."""

    def below(part: str) -> set[str]:
        return set().union(*({other} | below(other) for other in graph.get(part, ())))

    return {part: others - set().union(*(below(other) for other in others)) for part, others in graph.items()}


def picture() -> str:
    """The graph as a Mermaid flowchart: a frame for each package, a box for each part."""
    graph, labels = parts()
    lines = ["flowchart TB"]
    between: Graph = {package: set() for package in PACKAGES}
    for package in PACKAGES:
        own = {part: others for part, others in graph.items() if part.partition(".")[0] == package}
        for others in own.values():
            between[package] |= {other.partition(".")[0] for other in others} - {package}
        if package in FLAT:
            lines.append(f"    {package}")
            continue
        lines.append(f"    subgraph {package}")
        inside = reduced({part: {other for other in others if same(part, other)} for part, others in own.items()})
        for part, others in sorted(inside.items()):
            lines.append(f'        {part.replace(".", "_")}["{labels[part]}"]')
            lines += [f"        {part.replace('.', '_')} --> {other.replace('.', '_')}" for other in sorted(others)]
        lines.append("    end")
    for package, others in reduced(between).items():
        lines += [f"    {package} --> {other}" for other in sorted(others)]
    return "\n".join(lines)


def page_with_picture(page: str) -> str:
    """The page's text with the picture of today."""
    return re.sub(r"(?<=```mermaid\n).*?(?=```)", lambda _: picture() + "\n", page, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page_with_picture(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
