"""The order of a run: folder, data, training, checkpoints, scores, report."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from data_shards.shards.stream import ShardSet, Stream
from pretrain.checkpoints.combined import load_combined
from pretrain.checkpoints.init_weights import checksum_of, read_initial, start_from
from pretrain.checkpoints.metadata import shareable
from pretrain.checkpoints.weights_io import load_resume
from pretrain.config.auto import resolved
from pretrain.config.schema import Config, ConfigError
from pretrain.data.shard_sets import open_sets, phantom_shards, shard_cache
from pretrain.evaluation.final_knn import knn_of_run, labelled_sets
from pretrain.evaluation.online_knn import TrainingKnn
from pretrain.method.trainer import BadSamplesError, NonFiniteError, Trainer
from pretrain.models.backbones import Backbone, build_backbone, fitting_backbone
from pretrain.models.batchnorm import calibrate_batchnorm
from pretrain.models.student_teacher import view_sizes
from pretrain.monitoring.diagnosis import told
from pretrain.monitoring.progress_line import Progress
from pretrain.monitoring.trackers import Trackers
from pretrain.report.page import Report, format_summary, summary_rows, write_views
from pretrain.runs.checkpoint_writer import Saving
from pretrain.runs.metrics_log import Journal, read_metrics, whole
from pretrain.runs.resume_check import differences, extension_note, refuse_another_run
from pretrain.runs.run_folder import RunFolder, flat
from pretrain.runtime.precision import busy_note, resolve_precision, resolve_threads
from pretrain.runtime.signals import launcher_is_gone
from pretrain.runtime.watchdog import Watchdog

T = TypeVar("T")


class Run:
    """One pretraining run in its folder; `execute` does all of it, from wherever an earlier try ended."""

    def __init__(self, config: Config, resume: str, state: PartialState, watchdog: Watchdog) -> None:
        self.config = config
        self.resume = resume
        self.state = state
        self.main = state.is_main_process
        self.training = False
        self.trackers: Trackers | None = None  # of the main process
        self.folder = RunFolder(config.out)
        if resume != "auto":
            self.folder.same_command = "without --resume the same command"
        self.watchdog = watchdog
        watchdog.record, watchdog.standing = self._record, self.folder.standing
        self.say: Callable[[str], None] = print if self.main else (lambda _: None)

    def execute(self) -> None:
        """Train to the end or to a stop. Raises the rooms' errors for a user's mistakes, before any work if it can."""
        config = self.config
        config.check(self.state.num_processes)
        self.precision = resolve_precision(config.precision, self.state.device)
        self.threads = resolve_threads(config.threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(self.threads)
        self.say(
            f"{config.backbone} on {self.state.num_processes} x {self.state.device.type}, --threads {self.threads}, "
            f"precision {self.precision.name} ({self.precision.why})"
        )
        if note := busy_note(self.threads):
            self.say(note)
        cache = shard_cache(config.data)
        self.sets, self.weights = open_sets(config, cache)
        self._on_main(self._open_folder)
        if not self.sets:
            fitting_backbone(config.backbone, view_sizes(config))  # a mistake is told before a minute of rendering
            self.sets = [ShardSet(self._on_main(lambda: phantom_shards(config, self.folder.phantom, self.say)))]
        self.labelled = labelled_sets(config, self.sets, cache, self.say)
        stream = Stream(self.sets, self.weights, config.seed, config.data.shard_group)
        path = self._on_main(self._checkpoint)
        earlier = load_resume(path) if path else {}
        was = json.loads(earlier.get("identity", "{}"))
        initial = read_initial(config.init, config.backbone) if config.init and not path else None
        self.init = initial.checksum if initial else checksum_of(config.init, was.get("init"))
        config = self.config = self._without_auto(len(stream), was, initial.prototypes if initial else None)
        on_cpu = self.state.device.type == "cpu"
        tracking = {"log_with": config.log_with or None, "project_dir": str(self.folder.trackers)}
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=self.precision.mixed, **tracking)
        self.trainer = Trainer(config, accelerator, stream)
        self.saving = Saving(
            config, self.folder, self.trainer, self.sets, self.weights, self.precision, self.threads, self.init
        )
        if path:
            self._restore(path, earlier)
        elif initial:
            networks = self.trainer.student, self.trainer.teacher
            self.say(start_from(initial, config, *networks))
            if initial.lags and config.freezes_batchnorm:
                for network in networks:
                    calibrate_batchnorm(network.backbone, self.saving.calibration_crops, config.mean, config.std)
        finished = self._on_main(lambda: self.folder.read_state().get("state")) == "finished"
        if finished and self.trainer.step == self.trainer.total:
            self.say(
                f"the run in {self.folder.path} is finished: see {self.folder.report}; `--resume never` moves "
                "it aside and starts anew"
            )
            return
        epochs = self.trainer.total * config.data.batch_size / len(stream)
        self.say(
            f"{len(stream)} crops, {self.trainer.total} steps of {config.data.batch_size} crops ({epochs:.1f} epochs), "
            f"run folder {self.folder.path}"
        )
        if config.data.batch_size > len(stream):
            self.say("warning: a batch holds crops more than once: give a smaller --data.batch_size, or more crops")
        self._on_main(self._begin)
        self.training = True  # from here on an error may be one rank's own
        complete = self._train()
        if self.trackers:
            self.trackers.close()
        self.state.destroy_process_group()  # nobody waits while the main process scores
        if complete and self.main:
            self.watchdog.scoring()
            self._finish()

    def _record(self, status: Literal["stopped", "failed"]) -> None:
        """Write how the run ended: for the watchdog, on its threads, in the main process or where that one died."""
        if self.folder.held or self.training:
            self.folder.end_state(status, self.trainer.step if self.training else None)

    def _on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main process, on every process; a mistake found there ends them all."""
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = work()
            except (ValueError, OSError) as error:
                outcome[1] = error
        value, mistake = broadcast_object_list(outcome)
        if mistake:
            raise mistake
        return value

    def _open_folder(self) -> None:
        folder = self.folder
        if self.resume == "never" and (aside := folder.move_aside()):
            self.say(f"moved the old run to {aside}")
        folder.create()
        folder.lock()
        folder.sweep()
        folder.stop.unlink(missing_ok=True)  # of an earlier try; one put there from now on counts

    def _begin(self) -> None:
        settings = flat(shareable(self.config)) | {"precision": self.precision.name}
        self.trackers = Trackers(self.trainer.accelerator, settings, self.trainer.step)
        self.folder.write_config(self.config)
        self.folder.write_state("running", self.trainer.step)
        if not self.folder.views.exists():
            write_views(self.trainer.stream, self.config, self.folder.views)

    def _without_auto(self, crops: int, earlier: dict[str, Any], head: int | None) -> Config:
        """The settings with those on `auto` decided: by the run that is continued, else by rule."""
        device, processes = self.state.device.type, self.state.num_processes
        config, said = resolved(self.config, crops, device, processes, earlier, head)
        if said:
            self.say(said)
        config.check(self.state.num_processes)
        return config

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        """Continue from the checkpoint `state`, the same one on every rank; refuse one of another run."""
        new, old = self.saving.identity(), json.loads(state.pop("identity", "{}"))
        refuse_another_run(path, old, new)
        total, old_total = new["total steps"], old.get("total steps", 0)
        self.trainer.load_state_dict(state)
        if old_total < total:
            self.say(extension_note(self.config, self.trainer.step, old_total, total))
        if aside := self._on_main(lambda: self.folder.set_aside(self.trainer.step)):
            self.say(f"moved the checkpoints of later steps to {aside}, with copies of the logs")
        if self.trainer.step < total:
            self.say(f"continuing from step {self.trainer.step}")
            self.saving.saved = self.trainer.step
            if differs := differences(json.loads(state["circumstances"]), self.saving.circumstances()):
                said = "; ".join(f"{name} was {was}, now {now}" for name, (was, now) in differs.items())
                self.say(f"note: samples and views are the same, the last bits of losses may not be ({said})")

    def _checkpoint(self) -> Path | None:
        if self.resume not in ("auto", "never"):
            return Path(self.resume)
        path, warnings = self.folder.latest()
        for warning in warnings:
            self.say(f"warning: {warning}")
        return path

    def _train(self) -> bool:
        """Train to the end or to a stop; True when the run is complete."""
        trainer, folder = self.trainer, self.folder
        logged = trainer.stream, trainer.step, trainer.total, self.config.data.record
        journal = Journal(folder, *logged) if self.main else None
        knn = self._knn_while_training() if self.main else None
        if journal and journal.metrics.kept < trainer.step:
            lacking = trainer.step - journal.metrics.kept
            self.say(f"warning: {folder.metrics} lacks {lacking} of {trainer.step} earlier steps")
        progress = Progress(trainer.total, trainer.step, shown=self.main)

        def log(line: dict[str, Any]) -> None:
            self.saving.last_line = line
            if journal and knn:
                line |= knn.take(line)
                journal.write(line, trainer.samples)
            if self.trackers:
                self.trackers.log(line)
            progress.step(line, folder.verdict and folder.verdict.name)

        def save() -> None:
            if journal:
                self.saving.try_to_save(journal)
            self.state.wait_for_everyone()

        try:
            with self.watchdog.training(trainer) as signals:
                complete = trainer.run(log, save, lambda: signals.asked or self._must_stop())
        except BaseException as error:
            self._explain(error, journal)
            raise
        finally:
            progress.close()
            if journal:
                journal.close()
        if journal and self.saving.unsaved:
            raise OSError(
                f"step {trainer.step} is not saved ({self.saving.unsaved}); make room, then {folder.standing()}"
            )
        if not complete:
            self._on_main(self._stop)
        return complete

    def _must_stop(self) -> bool:
        return launcher_is_gone() or self.folder.stop.exists() or self._has_collapsed()

    def _has_collapsed(self) -> bool:
        return self.config.on_collapse == "stop" and self.folder.verdict is not None and self.folder.verdict.collapsed

    def _stop(self) -> None:
        """Say how a run stands that did not come to its end. Raises ConfigError if it has collapsed."""
        trainer, folder = self.trainer, self.folder
        folder.stop.unlink(missing_ok=True)
        if self._has_collapsed():
            raise ConfigError(
                f"{folder.verdict}. The run is stopped and saved after step {trainer.step} of {trainer.total}: start "
                "anew so with --resume never, or continue with --on_collapse warn"
            )
        folder.write_state("stopped", trainer.step)
        self.say(f"stopped after step {trainer.step} of {trainer.total}; {folder.same_command} continues")

    def _explain(self, error: BaseException, journal: Journal | None) -> None:
        """Keep what explains an error that all ranks met at one step, and raise it in plain words."""
        trainer, folder = self.trainer, self.folder
        if isinstance(error, BadSamplesError):
            if journal:
                journal.note_bad(trainer.step, trainer.samples)
            allowed = f"--data.bad_samples {self.config.data.bad_samples}"
            raise ConfigError(f"{error}, more than {allowed} allows: see {folder.bad_samples}") from error
        if isinstance(error, NonFiniteError):
            kept = self._on_main(lambda: self.saving.keep_nonfinite(journal) if journal else "")
            raise ConfigError(
                f"{error}; the weights are as before it. {kept}. Lower --optim.lr and start anew with --resume never"
            ) from error

    def _knn_while_training(self) -> TrainingKnn:
        earlier = whole(read_metrics(self.folder.metrics, b'"knn'))
        saving = self.saving
        calibration = lambda: saving.calibration_crops  # noqa: E731
        kept, given = self.folder.best_step(), (calibration, saving.keep_best, saving.starting_backbone)
        return TrainingKnn(self.config, self.trainer, self.labelled, *given, earlier, kept)

    def _knn(self, trained: Backbone) -> dict[str, Any]:
        start = self.saving.starting_backbone()
        if self.config.init and start is None:
            self.say(f"{self.config.init} is no longer what the run began with, so it is not scored")
        return knn_of_run(self.config, trained, self.labelled, self.sets, self.say, start)

    def _finish(self) -> None:
        """Score the weights as their users will load them, write facts, report and summary."""
        lines = whole(read_metrics(self.folder.metrics))
        if not lines:
            raise ConfigError(f"{self.folder.metrics} is lost, so there is nothing to report; training is complete")
        self.saving.last_line = lines[-1]
        trained = build_backbone(self.config.backbone)
        load_combined(self.folder.weights, trained)
        trained.to(self.state.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.labelled:
            self.say("scoring by k-NN, beside random weights, raw pixels and crop size")
        scores = {"knn": self._knn(trained)} if self.labelled else {}
        facts = self.saving.write_facts(self.folder.facts, scores)
        summary = summary_rows(lines, scores, self.config.method.prototypes, self.folder.best_step())
        rows = [*told(lines, self.trainer.total), *summary]
        shown = lambda: self.labelled or self.sets  # noqa: E731
        report = Report(self.config, lines, rows, facts, lambda: trained, shown, self.config.pictures)
        report.write()
        for missing in report.missing:
            self.say(f"warning: not on the page: {missing}")
        self.folder.write_state("finished", self.trainer.step)
        self.say("\n" + format_summary(rows))
        self.say(f"\n  weights  {self.folder.weights}\n  facts    {self.folder.facts}\n  report   {self.folder.report}")
