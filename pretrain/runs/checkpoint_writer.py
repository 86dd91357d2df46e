"""What a run leaves in its folder as it goes: weights and their facts for users, checkpoints for its continuation."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_shards.shards.stream import ShardSet
from pretrain.checkpoints.combined import save_combined
from pretrain.checkpoints.init_weights import starting_backbone
from pretrain.checkpoints.metadata import weights_facts, write_facts
from pretrain.checkpoints.weights_io import save_resume
from pretrain.config.schema import Config, ConfigError
from pretrain.method.trainer import Trainer
from pretrain.models.backbones import Backbone
from pretrain.models.batchnorm import calibration_crops, exported
from pretrain.models.student_teacher import Network
from pretrain.runs.metrics_log import Journal
from pretrain.runs.resume_check import circumstances, identity
from pretrain.runs.run_folder import RunFolder
from pretrain.runtime.environment import environment
from pretrain.runtime.precision import Precision


@dataclass
class Saving:
    """Writes the state of `trainer` to `folder`, with what tells one run from another."""

    config: Config
    folder: RunFolder
    trainer: Trainer
    sets: list[ShardSet]
    weights: list[float] | None
    """Of the sets."""
    precision: Precision
    threads: int
    init: str | None
    """Checksum of the weights that the run began with."""
    last_line: dict[str, Any] = field(default_factory=dict)
    """Of the log."""
    saved: int = 0
    """Step of the last checkpoint."""
    unsaved: str = ""
    """Why the last one failed, if it did."""

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        total = self.trainer.total
        return identity(self.config, self.sets, self.weights, self.precision.name, total, self.init)

    def circumstances(self) -> dict[str, Any]:
        """What may differ in one run, and then changes the last bits."""
        return circumstances(self._processes, self.threads, self._device.type, self.config.optim.compile)

    def try_to_save(self, journal: Journal) -> None:
        """Save; a full disk costs this checkpoint, not the run: the next one is tried as usual."""
        try:
            journal.flush()
            self._save()
            self.saved, self.unsaved = self.trainer.step, ""
        except OSError as error:
            self.unsaved = f"{error.strerror or error}: {error.filename or self.folder.path}"
            if self.trainer.step < self.trainer.total:
                goes_on = f"the run goes on, and the last checkpoint is of step {self.saved}"
                tqdm.write(f"warning: step {self.trainer.step} is not saved ({self.unsaved}); {goes_on}")

    def _save(self) -> None:
        """Weights for users and their facts, then the resume checkpoint: who continues from it finds both written."""
        folder, trainer = self.folder, self.trainer
        if not trainer.is_finite():
            raise ConfigError(
                f"the weights are no longer finite after step {trainer.step}, so they are not saved; lower --optim.lr "
                "and start anew with --resume never"
            )
        network = exported(trainer.teacher, self.calibration_crops, self.config)
        save_combined(folder.weights, network.backbone, network.proj_head)
        self.write_facts(folder.facts, {})
        milestone = trainer.step % self.config.milestone_every == 0
        save_resume(folder.resume_file(trainer.step, milestone), self._resume_state())
        folder.prune(self.config.keep)
        folder.write_state("running", trainer.step)

    def keep_best(self, network: Network, scores: dict[str, Any]) -> None:
        """Write the weights that scored best so far, and their facts."""
        save_combined(self.folder.best_weights, network.backbone, network.proj_head)
        self.write_facts(self.folder.best_facts, scores)

    def keep_nonfinite(self, journal: Journal) -> str:
        """Keep what explains a step that went bad; a sentence on where it is, or why it is nowhere."""
        samples = journal.named(self.trainer.samples)
        try:
            given, before = self.folder.keep_nonfinite(self.trainer.step, samples, self._resume_state())
        except OSError as lost:
            return f"Its samples and the state before it could not be kept ({lost})"
        return f"Its samples are in {given}; the same command with --resume {before} replays it"

    def write_facts(self, path: Path, scores: dict[str, Any]) -> dict[str, Any]:
        """Write what a user of the weights must know to `path`, and return it."""
        names = "loss", "loss_over_ln_k", "teacher_entropy", "teacher_mean_entropy"
        facts = weights_facts(
            self.config,
            self.sets,
            self.weights,
            features=self.trainer.student.backbone.num_features,
            precision=self.precision.name,
            step=self.trainer.step,
            total=self.trainer.total,
            scores=scores,
            monitors={name: self.last_line[name] for name in names},
            init=self.init,
            environment=environment(self._device, self._processes, self.threads, self.precision.name),
        )
        write_facts(path, facts)
        return facts

    @cached_property
    def calibration_crops(self) -> np.ndarray:
        """The training crops that BatchNorm's buffers are measured on before an export."""
        config = self.config
        return calibration_crops(self.trainer.stream, config.views.global_size, config.data.bad_samples > 0)

    def starting_backbone(self) -> Backbone | None:
        """The backbone that the run began with; None where it began anew, or its file is gone or another by now."""
        return starting_backbone(self.config, self.init, lambda: self.calibration_crops)

    @property
    def _device(self) -> torch.device:
        return self.trainer.accelerator.device

    @property
    def _processes(self) -> int:
        return self.trainer.accelerator.num_processes

    def _resume_state(self) -> dict[str, Any]:
        origin = {"identity": json.dumps(self.identity()), "circumstances": json.dumps(self.circumstances())}
        return self.trainer.state_dict() | origin
