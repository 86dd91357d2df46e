"""What makes two runs the same run: which changes of mind a resume allows, which it refuses, and what it says."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_shards.shards.shuffle import ORDER
from data_shards.shards.stream import ShardSet
from pretrain.config.schema import ChangedError, Config
from pretrain.method.step_rates import rates_at
from pretrain.runs.run_folder import flat

# A change of these, or of eval.*, changes nothing that training computes (threads and compile: its last bits, which is
# said). Data sets are told apart by checksum, precision by what it resolved to, the length of the run by its steps.
HARMLESS = (
    "out", "init", "steps", "epochs", "checkpoint_every", "keep", "milestone_every", "on_collapse", "pictures",
    "log_with", "timeout", "precision", "threads", "data.workers", "data.shards", "data.bad_samples", "data.record",
    "data.cache", "data.cache_gb", "data.patience", "optim.gradient_checkpointing", "optim.compile",
)  # fmt: skip

OF_INIT = ("optim.init_lr", "optim.init_freeze")
"""What changes nothing in a run that begins from random weights."""


def identity(
    config: Config,
    sets: Sequence[ShardSet],
    weights: list[float] | None,
    precision: str,
    total: int,
    init: str | None,
) -> dict[str, Any]:
    """All that the run computes from, JSON-ready: settings, arithmetic, order, length; by checksum data and `init`."""
    settings = flat(json.loads(json.dumps(dataclasses.asdict(config))))
    kept = {k: v for k, v in settings.items() if k not in HARMLESS and not k.startswith("eval.")}
    data = {"data": [shards.checksum[:12] for shards in sets], "data.weights": weights, "data.order": ORDER}
    normalized = "frozen" if config.freezes_batchnorm else "batch"
    return kept | data | {"batchnorm": normalized, "init": init, "precision": precision, "total steps": total}


def circumstances(processes: int, threads: int, device: str, compiled: bool) -> dict[str, Any]:
    """What moves the last bits of a float and makes no other run."""
    here = {"processes": processes, "threads": threads, "device": device, "torch": torch.__version__}
    return here | {"compile": compiled}


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The entries that differ, as (old, new); None where there is none."""
    return {k: (old.get(k), new.get(k)) for k in sorted({*old, *new}) if old.get(k) != new.get(k)}


def refuse_another_run(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise ChangedError where the checkpoint at `path` is of another run than `new`; a longer one is the same run."""
    changed = differences(old, new)
    if "batchnorm" not in old and new.get("batchnorm") == "batch":  # a run of before the setting
        changed.pop("batchnorm", None)
    if old.get("total steps", 0) < new["total steps"]:
        changed.pop("total steps", None)
    if old.get("init") is None and new["init"] is None:
        changed = {name: values for name, values in changed.items() if name not in OF_INIT}
    if changed:
        raise ChangedError(
            f"{path} is of a run with other settings; give those again, or another --out, or --resume never to "
            f"move the old run aside:\n{table(changed)}"
        )


def table(changed: dict[str, tuple[Any, Any]]) -> str:
    """Differences as aligned lines under the heads setting, was, now."""
    rows = [("setting", "was", "now"), *((name, str(old), str(new)) for name, (old, new) in changed.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {name:<{widths[0]}}  {old:<{widths[1]}}  {new}" for name, old, new in rows)


def extension_note(config: Config, step: int, old: int, new: int) -> str:
    """What a run of `old` steps that becomes one of `new` steps does to its schedules, at `step` where it goes on."""
    before, after = rates_at(config, min(step, old - 1), old)._asdict(), rates_at(config, step, new)._asdict()
    changed = {name: (f"{before[name]:.4g}", f"{after[name]:.4g}") for name in before if before[name] != after[name]}
    said = f"the run was to end at step {old} and now goes on to {new}; every schedule is stretched to the new length"
    return f"{said}, so that here, at step {step}:\n{table(changed)}" if changed else said
