"""The page of a run that is still training, or was stopped: `python -m pretrain report RUN`."""

from collections.abc import Sequence
from pathlib import Path

from data_shards.shards.stream import ShardSet
from pretrain.checkpoints.combined import load_combined
from pretrain.checkpoints.metadata import read_run_facts, shareable
from pretrain.config.schema import Config, ConfigError
from pretrain.data.shard_sets import open_sets, phantom_shards, shard_cache
from pretrain.evaluation.final_knn import labelled_sets
from pretrain.models.backbones import Backbone, build_backbone
from pretrain.monitoring.diagnosis import told
from pretrain.report.page import Report, summary_rows
from pretrain.runs.metrics_log import read_metrics, whole
from pretrain.runs.run_folder import RunFolder
from tooth_foundations.core.text import counted


def report_now(config: Config) -> Report:
    """Write the page of the run in `config.out` as it stands: by its last checkpoint's weights, on the CPU.

    It reads only, so the run may go on meanwhile. Raises ConfigError for a run without a step, and for files that are
    damaged.
    """
    folder = RunFolder(config.out)
    _check(config, folder.config)
    logged = list(read_metrics(folder.metrics))
    lines = whole(logged)
    if not logged:
        raise ConfigError(f"{folder.metrics} has no step yet, so there is nothing to show; wait for the first")
    if not lines:
        raise ConfigError(f"no line of {folder.metrics} is whole, so there is nothing to show; copy the file again")
    facts = {"settings": shareable(config)} | read_run_facts(folder.facts)
    total = facts["training"]["steps"] if "training" in facts else config.steps

    def backbone() -> Backbone:
        if not folder.weights.exists():
            raise ConfigError("there are no weights before the first checkpoint")
        trained = build_backbone(config.backbone)
        load_combined(folder.weights, trained)
        return trained

    state = folder.read_state()
    rows = told(lines, total or lines[-1]["step"] + 1)
    step = lines[-1]["step"] + 1
    standing = f"{state.get('state', 'unknown')} at step {step}" + (f" of {total}" if total else "")
    if "training" in facts:
        standing += f"; the pictures are of the weights after step {facts['training']['step']}"
    summary = summary_rows(lines, facts.get("scores", {}), config.method.prototypes, folder.best_step())
    if state.get("state") != "finished":
        coming = "measured at the end, if there are labels"
        summary = [(name, coming if name == "k-NN" else value) for name, value in summary]
    report = Report(config, lines, [*rows, ("run", standing), *summary], facts, backbone, lambda: _sets(config, folder))
    report.write()
    if damaged := len(logged) - len(lines):
        report.missing.append(f"{counted(damaged, 'damaged line')} of {folder.metrics}")
    return report


def _check(config: Config, path: Path) -> None:
    """Raise ConfigError for settings, read from `path`, that no run has."""
    try:
        config.check_limits()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if config.method.prototypes == "auto":  # a run writes the number that it decided on
        raise ConfigError(f"{path} does not say method.prototypes: copy it again")


def _sets(config: Config, folder: RunFolder) -> Sequence[ShardSet]:
    """The sets that k-NN is measured on, else those trained on."""
    cache = shard_cache(config.data)
    sets, _ = open_sets(config, cache)
    if not sets:
        sets = [ShardSet(phantom_shards(config, folder.phantom, lambda _: None))]
    return labelled_sets(config, sets, cache, lambda _: None) or sets


def run_folder(path: Path) -> RunFolder:
    """The run folder at `path`. Raises ConfigError if it is none."""
    folder = RunFolder(path)
    if not folder.config.exists():
        raise ConfigError(f"{path} is no run folder: it has no {folder.config.name}; give the --out of a run")
    return folder
