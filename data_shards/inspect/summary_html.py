"""What a shard folder holds, as one self-contained page that a phone can read too: no network, no script."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_shards.errors import PackError
from data_shards.inspect.drawing import caption
from data_shards.inspect.preview import eight_bits
from data_shards.inspect.summary import QUANTILES, Survey, spread_over
from data_shards.inspect.summary_text import BARS, LISTED, counted, duplicate_lines, headline, why_not
from data_shards.ledger import LEDGERS
from data_shards.shards.shard_set import ShardSet
from tooth_foundations.core.html import document, photo, table, text

CROPS = 48
"""Crops on the page: as many as one looks at, some 300 KB."""
THUMBNAIL = 160
"""Height of a crop on the page, pixels."""
BINS = 40

_STYLE = f"""
.values {{ columns: 16rem; column-gap: 2rem }}
.values.few {{ columns: auto; max-width: 40rem }}
.values div {{ display: flex; gap: .8rem; break-inside: avoid }}
.values b {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; flex: none; max-width: 40% }}
.values span {{ text-align: right; flex: none; width: 3.4rem }}
.values i {{ flex: 1 }}
.values i i {{ display: block; background: var(--accent); height: .8rem; margin-top: .35rem }}
.crops, .plots {{ display: flex; flex-wrap: wrap; gap: .6rem }}
.crops img {{ height: {THUMBNAIL}px; max-width: 100%; object-fit: contain; display: block; margin: 0 auto }}
.plots figure {{ flex: 1 1 20rem; text-align: left }}
@media (min-width: 50rem) {{ .plots figure {{ flex: 0 0 calc(50% - .3rem) }} }}
"""


def write_page(samples: ShardSet, found: Survey, path: Path) -> None:
    """Write the page: ids, labels and crops, no path or name. Raises PackError where it cannot be written."""
    page = as_page(samples, found).encode()
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(page)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise PackError(f"cannot write {path} ({error.strerror}): name another --html") from None


def as_page(samples: ShardSet, found: Survey) -> str:
    """A survey of `samples` as HTML."""
    title = f"{counted(found.samples, 'tooth crop')} in {counted(found.shards, 'shard')}"
    labels = "".join(f"<h3>{text(name)}</h3>{_label(counts)}" for name, counts in found.labels.items())
    sections = {
        "Crops": _crops(samples),
        "Sizes and intensities": _plots(found),
        "Labels": labels or "<p>These crops carry no labels.</p>",
        "Where from, and what was left out": _books(found),
        "Technical facts": _facts(found),
        "Settings": _settings(found),
    }
    body = "".join(f"<h2>{name}</h2>\n{content}\n" for name, content in sections.items() if content)
    summary = "<br>".join(text(line) for line in headline(found))
    return document(title, f"<p>{summary}</p>\n{body}", _STYLE)


def _crops(samples: ShardSet) -> str:
    figures = ""
    for i in spread_over(len(samples), CROPS):
        crop, meta = eight_bits(samples.image(i)), samples.meta(i)
        height, width = crop.shape
        scale = min(1.0, 2 * THUMBNAIL / height, 4 * THUMBNAIL / width)  # twice the shown size, for sharp screens
        size = max(1, round(width * scale)), max(1, round(height * scale))
        words = f"{caption(meta)} {width}×{height}".strip()
        shown = photo(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), words, quality=95)
        figures += f"<figure>{shown}<figcaption>{text(words)}</figcaption></figure>"
    return f'<p>Spread evenly over the shards; width × height in pixels.</p><div class="crops">{figures}</div>'


def _label(counts: Counter[str]) -> str:
    few = len(counts) <= BARS
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]) if few else (0, item[0]))
    total, most, wide = sum(counts.values()), max(counts.values()), max(map(len, counts))
    rows = "".join(
        f'<div><b style="width:{wide}ch">{text(value)}</b><span>{count:,}</span><span>{count / total:.1%}</span>'
        f'<i><i style="width:{100 * count / most:.1f}%"></i></i></div>'
        for value, count in ordered[:LISTED]
    )
    more = f"<p>and {counted(len(counts) - LISTED, 'more value')}</p>" if len(counts) > LISTED else ""
    return f'<div class="values{" few" if few else ""}">{rows}</div>{more}'


def _plots(found: Survey) -> str:
    names = {"width": "width, pixels", "height": "height, pixels", "aspect": "width / height"}
    plots = ""
    for name, values in found.sizes.items():
        counts, edges = np.histogram(values, _edges(values, name != "aspect"))
        plots += _histogram(counts, edges, f"{names[name]}: median {np.median(values):.4g}")
    words = f"intensity, share of full scale: mean {found.mean:.3f}, standard deviation {found.deviation:.3f}"
    plots += _histogram(found.intensities.reshape(64, 4).sum(1), np.linspace(0, 1, 65), words)
    heads = "".join(f"<th>{100 * q:g} %</th>" for q in QUANTILES)
    rows = ""
    for name, values in found.sizes.items():
        cells = "".join(f"<td>{v:.4g}</td>" for v in np.quantile(values, QUANTILES))
        rows += f"<tr><th>{names[name]}</th>{cells}</tr>"
    measured = f"<p>Intensities of {counted(found.measured, 'crop')}, spread evenly.</p>"
    quantiles = f'<div class="wide"><table><tr><th></th>{heads}</tr>{rows}</table></div>'
    return f'<div class="plots">{plots}</div>{quantiles}{measured}'


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Edges of some `BINS` bins; for whole numbers each as wide as a whole number, lest some hold more of them."""
    low, high = float(values.min()), float(values.max())
    if not whole:
        return np.linspace(low, max(high, low + 1e-3), BINS + 1)
    step = max(1.0, np.ceil((high - low + 1) / BINS))
    return np.arange(low, high + 1 + step, step)


def _histogram(counts: np.ndarray, edges: np.ndarray, words: str) -> str:
    """Counts [n] between edges [n + 1] as inline SVG."""
    step, most = 400 / len(counts), max(1, int(counts.max()))
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{100 - 100 * count / most:.1f}" width="{step * 0.9:.1f}" '
        f'height="{100 * count / most:.1f}"/>'
        for i, count in enumerate(counts)
        if count
    )
    middle = (edges[0] + edges[-1]) / 2
    ticks = "".join(
        f'<text x="{x}" y="116" text-anchor="{anchor}">{value:.3g}</text>'
        for x, anchor, value in ((0, "start", edges[0]), (200, "middle", middle), (400, "end", edges[-1]))
    )
    said = text(words)
    return (
        f'<figure><figcaption>{said}</figcaption><svg viewBox="0 0 400 120" role="img" aria-label="{said}" '
        f'fill="var(--accent)" font-size="12">{bars}<line x1="0" x2="400" y1="100.5" y2="100.5" stroke="var(--line)"/>'
        f'<g fill="var(--pale)">{ticks}</g></svg></figure>'
    )


def _books(found: Survey) -> str:
    if not found.manifest:
        return ""
    heads = ["", "seen", "used", "rejected"]
    ledgers = [(name, *(f"{ledger[k]:,}" for k in heads[1:])) for name, ledger in found.manifest["ledgers"].items()]
    parts = [table(heads, ledgers)]
    reasons = [(why, *(f"{counts.get(name, 0):,}" for name in LEDGERS)) for why, counts in why_not(found.manifest)]
    if reasons:
        parts += ["<h3>Rejected</h3>", table(["", *LEDGERS], reasons)]
    parts.append("<h3>Duplicates</h3>" + "".join(f"<p>{text(line)}</p>" for line in duplicate_lines(found)))
    if sources := found.manifest.get("sources"):
        total = sum(source["crops"] for source in sources) or 1
        rows = [
            (s["id"], f"{s['files']:,}", f"{s['radiographs']:,}", f"{s['crops']:,}", f"{s['crops'] / total:.1%}")
            for s in sources
        ]
        parts += ["<h3>Sources</h3>", table(["source", "files", "radiographs", "crops", "share"], rows)]
    return "".join(parts)


def _facts(found: Survey) -> str:
    rows: list[Sequence[str]] = []
    for name, counts in {"depth": found.depths, **found.words}.items():
        rows += [(name, value, f"{count:,}") for value, count in sorted(counts.items())[:LISTED]]
    for name, values in found.numbers.items():
        low, middle, high = np.quantile(values, (0, 0.5, 1))
        spread = f"{low:g}" if low == high else f"{low:g} to {high:g}, median {middle:g}"
        rows.append((name, spread, f"{len(values):,}"))
    return table(["", "value", "crops"], rows, words=1) if rows else ""


def _settings(found: Survey) -> str:
    rows = [(name, str(value)) for name, value in found.manifest.get("settings", {}).items()]
    return table(["", ""], rows, words=1) if rows else ""
