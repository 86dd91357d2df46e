"""What a shard folder holds, as text of at most 96 columns."""

import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.inspect.summary import QUANTILES, Survey, survey
from data_shards.pack.finalize import UNUSED
from data_shards.shards.shard_set import ShardSet
from tooth_foundations.core.text import without_controls

COLUMNS = 96
BARS = 12
"""Values of a label up to which each has a line with its bar; of more, a table says as much in less."""
LISTED = 64
"""Most values of a label that are listed: free text has thousands."""
_BAR = 30
_WHOLE = ("none", "folders", "csv of whole images")  # kinds of boxes that are none
_ONE_AND_MANY = {"files": ("file", "files"), "radiographs": ("radiograph", "radiographs"), "boxes": ("box", "boxes")}
_LEVELS = " ▁▂▃▄▅▆▇█"


def describe(folder: Path, quiet: bool = True) -> str:
    """Counts, ledgers, duplicates, sources, sizes, intensities and labels; of foreign shards what they have.

    Raises ShardError where there are none or they cannot be read.
    """
    return as_text(survey(ShardSet(folder), quiet), folder)


def as_text(found: Survey, folder: Path) -> str:
    """A survey of `folder` for the terminal."""
    first = [str(folder), *(f"  {line}" for line in headline(found))]
    blocks = [first, *_books(found), _sizes(found), _intensities(found), _facts(found)]
    blocks += [_label(name, counts) for name, counts in found.labels.items()]
    if found.hidden:
        told = ", ".join(f"{name} ({count} values)" for name, count in found.hidden.items())
        blocks.append(_wrapped(f"other fields, not shown as they may hold names: {told}"))
    return "\n\n".join("\n".join(block) for block in blocks if block)


def headline(found: Survey) -> list[str]:
    """What there is, in a few lines."""
    lines = [f"{counted(found.samples, 'crop')}, {found.megabytes:,.1f} MB in {counted(found.shards, 'shard')}"]
    if found.radiographs:
        radiographs, patients = counted(found.radiographs, "radiograph"), counted(found.patients, "patient")
        lines.append(f"{radiographs} of {patients}")
    if len(found.crops_a_patient):
        low, middle, high = np.quantile(found.crops_a_patient, (0, 0.5, 1))
        lines.append(f"crops a patient: {low:,.0f} to {high:,.0f}, median {middle:,.0f}")
    if found.later_frames:
        lines.append(f"{counted(found.later_frames, 'crop')} from later frames of their files")
    held = found.manifest.get("holdout", {})
    if held.get("samples"):
        patients = counted(held["patients"], "patient")
        lines.append(f"held out beside them: {counted(held['samples'], 'crop')} of {patients}, in holdout/")
    if found.manifest.get("settings", {}).get("boxes") in _WHOLE:
        lines.append("whole images are the crops: look at their borders, as text burnt into them is in the shards")
    if not found.manifest:
        lines.append("no manifest: these shards come from elsewhere, so there are no ledgers")
    return lines


def _books(found: Survey) -> list[list[str]]:
    if not found.manifest:
        return []
    blocks = [ledger_lines(found.manifest)]
    duplicates = duplicate_lines(found)
    blocks.append(["duplicates", *(f"  {line}" for line in duplicates)])
    if sources := found.manifest.get("sources"):
        total = sum(source["crops"] for source in sources) or 1
        table = [f"{'source':<18}{'files':>9}{'radiographs':>13}{'crops':>9}   share"]
        for source in sources:
            counts = f"{source['files']:>9,}{source['radiographs']:>13,}{source['crops']:>9,}"
            table.append(f"  {source['id']:<16}{counts}   {_share(source['crops'], total)}")
        blocks.append(table)
    settings = ", ".join(f"{name} {value}" for name, value in found.manifest["settings"].items())
    blocks.append(_wrapped(f"settings: {settings}"))
    return blocks


def ledger_lines(manifest: Mapping[str, Any]) -> list[str]:
    """The three ledgers as a table, and why inputs were rejected, the commonest reason first."""
    lines = [f"{'ledger':<13}{'seen':>10}{'used':>10}{'rejected':>10}"]
    for name, ledger in manifest["ledgers"].items():
        lines.append(f"{name:<13}{ledger['seen']:>10,}{ledger['used']:>10,}{ledger['rejected']:>10,}")
    told = [
        (", ".join(counted(n, *_ONE_AND_MANY[of]) for of, n in counts.items()), why)
        for why, counts in why_not(manifest)
    ]
    wide = max((len(what) for what, _ in told), default=0) + 3
    for what, why in told:
        lines += textwrap.wrap(f"  {what:<{wide}}{why}", COLUMNS, subsequent_indent=" " * (wide + 2))
    return lines


def why_not(manifest: Mapping[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Why inputs were rejected: each reason with the number of inputs by ledger, the commonest reason first.

    A radiograph's file and boxes go with it, so they stand beside it under its reason.
    """
    counts: dict[str, dict[str, int]] = {}
    for ledger, reasons in manifest["reasons"].items():
        for reason, count in reasons.items():
            by_ledger = counts.setdefault(reason.removeprefix(UNUSED), {})
            by_ledger[ledger] = by_ledger.get(ledger, 0) + count
    return sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))


def duplicate_lines(found: Survey) -> list[str]:
    """What is known of radiographs that stand there twice."""
    doubles = found.duplicates
    exact = f"exact: {counted(doubles.exact, 'radiograph')} left out"
    if doubles.earlier:
        exact += f", {doubles.earlier:,} of them for a twin in an earlier pack"
    lines = [exact + " (rejected.jsonl names their twins)"]
    if "near" in found.manifest:
        kept = "all kept, each pair as one patient"
        dropped = f"{counted(doubles.dropped, 'radiograph')} left out" if doubles.dropped else kept
        lines.append(f"near: {counted(doubles.near, 'pair')}, {dropped} (near.jsonl lists them)")
    return lines


def _sizes(found: Survey) -> list[str]:
    which = "" if found.manifest else f" (of {found.measured:,} crops)"
    lines = [f"{f'sizes{which}':<22}" + "".join(f"{f'{100 * q:g} %':>9}" for q in QUANTILES)]
    units = {"width": "width, pixels", "height": "height, pixels", "aspect": "width / height"}
    for name, values in found.sizes.items():
        shown = (f"{v:>9.2f}" if name == "aspect" else f"{v:>9,.0f}" for v in np.quantile(values, QUANTILES))
        lines.append(f"  {units[name]:<20}" + "".join(shown))
    return lines


def _intensities(found: Survey) -> list[str]:
    bins = found.intensities.reshape(64, 4).sum(1)
    heights = np.ceil(8 * bins / max(1, bins.max())).astype(int)
    total = max(1, found.intensities.sum())
    ends = f"{found.intensities[0] / total:.1%} are black, {found.intensities[255] / total:.1%} white"
    return [
        f"intensity: mean {found.mean:.4f}, standard deviation {found.deviation:.4f} of full scale; {ends}",
        f"  0 {''.join(_LEVELS[h] for h in heights)} 1   ({found.measured:,} crops)",
    ]


def _facts(found: Survey) -> list[str]:
    lines = [f"depth: {_list(found.depths)}"] if found.depths else []
    lines += [line for name, counts in found.words.items() for line in _wrapped(f"{name}: {_list(counts)}")]
    for name, values in found.numbers.items():
        low, middle, high = np.quantile(values, (0, 0.5, 1))
        spread = f"{low:g}" if low == high else f"{low:g} to {high:g}, median {middle:g}"
        of = "" if len(values) == found.samples else f" (of {len(values):,} crops)"
        lines.append(f"{name}: {spread}{of}")
    return lines


def _label(name: str, counts: Counter[str]) -> list[str]:
    total = sum(counts.values())
    head = f"{name}: {counted(len(counts), 'value')} on {counted(total, 'crop')}"
    named = [(without_controls(value), count) for value, count in counts.items()]
    wide = max(len(value) for value, _ in named)
    if len(named) <= BARS:
        common = sorted(named, key=lambda item: (-item[1], item[0]))
        return [head, *(f"  {value:<{wide}}{count:>10,}   {_share(count, total)}" for value, count in common)]
    digits = len(f"{max(counts.values()):,}")
    cells = [f"{value:<{wide}} {count:>{digits},}" for value, count in sorted(named)[:LISTED]]
    across = max(1, (COLUMNS - 2) // (len(cells[0]) + 3))
    rows = ["  " + "   ".join(cells[i : i + across]) for i in range(0, len(cells), across)]
    return [head, *rows, *([f"  and {len(named) - LISTED:,} more"] if len(named) > LISTED else [])]


def _list(counts: Mapping[str, int]) -> str:
    shown = [f"{without_controls(value)} {count:,}" for value, count in sorted(counts.items())[:LISTED]]
    more = [f"and {len(counts) - LISTED:,} more"] if len(counts) > LISTED else []
    return ", ".join([*shown, *more])


def counted(count: int, one: str, many: str = "") -> str:
    """`1 crop`, `2,000 crops`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _share(count: int, total: int) -> str:
    return f"{count / total:>6.1%} {'█' * round(_BAR * count / total)}".rstrip()


def _wrapped(line: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(line, COLUMNS, subsequent_indent=indent, break_long_words=False)
