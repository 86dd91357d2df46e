"""The frame of the pages this project writes: one file, for a phone too, light or dark; no network, no script."""

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np

from tooth_foundations.core.text import without_controls

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #222; --pale: #555; --line: #ccc; --accent: #1f5f8b }
:root { --panel: #f4f5f6; --good: #2a7d46; --bad: #b3261e; --doubt: #9a6500 }
@media (prefers-color-scheme: dark) {
:root { --ground: #15181b; --ink: #e2e4e6; --pale: #a3a9ae; --line: #454b50; --accent: #78b7e0 }
:root { --panel: #1f2428; --good: #6cc487; --bad: #f28b82; --doubt: #e0ac4c }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem }
body { background: var(--ground); color: var(--ink); overflow-wrap: break-word }
h2 { margin-top: 2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse }
th, td { text-align: right; padding: .15rem .9rem .15rem 0; vertical-align: top }
th:first-child, .words { text-align: left }
td + td { white-space: nowrap }
img { max-width: 100%; height: auto }
figure { margin: 0; text-align: center; font-size: .8rem; color: var(--pale) }
svg { width: 100%; height: auto; display: block }
pre { background: var(--panel); padding: 1rem; overflow-x: auto; font-size: 13px }
.warning { border-left: 4px solid var(--doubt); padding-left: .6rem }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A whole page: `title` as plain text, `body` and the page's own `style` as they are."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{_STYLE}{style}</style>
<h1>{text(title)}</h1>
{body}</html>
"""


def text(words: str) -> str:
    """Words for a page: escaped, without what does not print."""
    return html.escape(without_controls(words))


def listing(lines: str) -> str:
    """Lines as they are, such as settings."""
    shown = "\n".join(map(text, lines.splitlines()))
    return f"<pre>{shown}</pre>"


def picture(data: bytes, description: str, kind: str = "png") -> str:
    """An encoded picture inside the page."""
    inside = base64.b64encode(data).decode()
    return f'<img alt="{text(description)}" src="data:image/{kind};base64,{inside}">'


def photo(pixels: np.ndarray, description: str, quality: int = 85) -> str:
    """uint8 pixels, gray [h, w] or RGB [h, w, 3], as a JPEG inside the page."""
    channels = pixels if pixels.ndim == 2 else pixels[..., ::-1]
    data = cv2.imencode(".jpg", channels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return picture(data, description, "jpeg")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = -1) -> str:
    """A table of plain text, a row's first cell its head; the column `words` is set to the left."""
    left = [' class="words"' if i == words else "" for i in range(len(heads))]
    top = "".join(f"<th{side}>{text(head)}</th>" for side, head in zip(left, heads, strict=True))
    body = ""
    for row in rows:
        cells = "".join(f"<td{side}>{text(cell)}</td>" for side, cell in zip(left[1:], row[1:], strict=True))
        body += f"<tr><th>{text(row[0])}</th>{cells}</tr>"
    return f'<div class="wide"><table>{f"<tr>{top}</tr>" if any(heads) else ""}{body}</table></div>'
