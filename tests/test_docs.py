"""The pages show what the program really says: their commands are run, and their outputs compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VARIES = re.compile(r"[\d.,]+ MB")  # compressed sizes differ with the version of zlib


def sessions(page):
    """(command, lines shown below it) of every indented line that begins with `$ `; `> ` continues a command."""
    found: list[tuple[str, list[str]]] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("    $ "):
            found.append((line[6:], []))
        elif line.startswith("    > ") and found and found[-1][0]:
            found[-1] = (f"{found[-1][0]}\n{line[6:]}", [])
        elif line.startswith("    ") and found:
            found[-1][1].append(line[4:])
        elif line.strip() and found:
            found.append(("", []))  # prose: what is indented below it belongs to no command
    return [(command, shown) for command, shown in found if command]


def same(shown, told):
    """Whether an output is the one shown, in which a line `...` stands for any lines and `...` for any text."""
    pattern = "\n".join(re.escape(VARIES.sub("N MB", line)) for line in shown).replace(re.escape("..."), r"[\s\S]*")
    return re.fullmatch(pattern, "\n".join(VARIES.sub("N MB", line.rstrip()) for line in told if line.strip()))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["archive.md"])
def test_every_command_of_a_page_says_what_the_page_shows(page, tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "120"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = sessions(ROOT / "docs" / page)
    assert len(ran) > 5
    for command, shown in ran:
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
        told = done.stdout.decode().rstrip().splitlines()
        assert same(shown, told), "\n".join([f"$ {command}", *told, done.stderr.decode()[-2000:]])


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_between_the_pages_lead_somewhere():
    pages = [path for path in ROOT.rglob("*.md") if ".git" not in path.parts]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    inside = [(page, *link.partition("#")[::2]) for page, link in links if "://" not in link]
    assert len(inside) > 20
    for page, path, anchor in inside:
        target = page.parent / path if path else page
        assert target.exists(), f"{page.relative_to(ROOT)} links to {path}"
        assert not anchor or anchor in anchors(target), f"{page.relative_to(ROOT)} links to {path}#{anchor}"
