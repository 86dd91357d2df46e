"""What a shard folder holds, as text."""

from pathlib import Path
from typing import Any

from data_shards.folder import count_labels
from data_shards.shard_set import ShardSet

_LONGEST_LIST = 40


def describe(folder: Path) -> str:
    """Counts, ledgers, reasons, sizes, intensities and labels of a shard folder; of foreign shards what they have."""
    samples = ShardSet(folder)
    lines = [f"{folder}: {len(samples)} samples in {len(samples.shards)} shards"]
    if not samples.manifest:
        lines.append("no manifest: these shards come from elsewhere")
        return "\n".join(lines + _labels(count_labels(samples.meta(i) for i in range(len(samples)))))
    manifest = samples.manifest
    found = manifest["statistics"]
    megabytes = sum(s["bytes"] for s in manifest["shards"]) / 1e6
    lines.append(f"{megabytes:.1f} MB, {found['radiographs']} radiographs, {found['patients']} patients")
    if manifest.get("holdout", {}).get("samples"):
        held = manifest["holdout"]
        lines.append(f"holdout: {held['samples']} samples of {held['patients']} patients in {folder / 'holdout'}")
    lines += ["", *ledger_lines(manifest), "", "settings"]
    lines += [f"  {name}: {value}" for name, value in manifest["settings"].items()]
    lines += ["", f"pixels: mean {found['pixel_mean']:.4f}, standard deviation {found['pixel_std']:.4f} of full scale"]
    for name in ("width", "height", "aspect"):
        lines.append(f"{name:>6}: " + "  ".join(f"{q} {v:g}" for q, v in found[name].items()))
    return "\n".join([*lines, "", *_labels(found["labels"])])


def ledger_lines(manifest: dict[str, Any]) -> list[str]:
    """The three ledgers as a table, and why inputs were rejected."""
    lines = [f"{'ledger':<12} {'seen':>9} {'used':>9} {'rejected':>9}"]
    for name, ledger in manifest["ledgers"].items():
        lines.append(f"{name:<12} {ledger['seen']:>9} {ledger['used']:>9} {ledger['rejected']:>9}")
    for name, reasons in manifest["reasons"].items():
        lines += [f"  {count} {name} rejected: {reason}" for reason, count in reasons.items()]
    return lines


def _labels(labels: dict[str, dict[str, int]]) -> list[str]:
    lines = []
    for name, counts in labels.items():
        shown = [f"{value} {count}" for value, count in list(counts.items())[:_LONGEST_LIST]]
        more = f", and {len(counts) - _LONGEST_LIST} more" if len(counts) > _LONGEST_LIST else ""
        lines.append(f"{name}: {', '.join(shown)}{more}")
    return lines
