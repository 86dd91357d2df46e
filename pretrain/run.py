"""The order of a run: folder, data, training, checkpoints, scores, report."""

import dataclasses
import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from augment import MultiCrop
from augment.preview import draw_views
from data_shards.pack import PackConfig, pack
from data_shards.phantom import write_archive
from data_shards.stream import ShardSet, Stream
from pretrain.backbones import build_backbone
from pretrain.batchnorm import calibration_crops, exported
from pretrain.checkpoint import load_combined, load_resume, replace_atomically, save_combined, save_resume
from pretrain.config import Config, ConfigError, parsed_shards
from pretrain.facts import weights_facts, write_facts
from pretrain.precision import resolve_precision, resolve_threads
from pretrain.report import format_summary, summary_rows, write_report
from pretrain.run_folder import MetricsLog, RunFolder, flat, read_metrics
from pretrain.scores import knn_of_run, labelled_sets
from pretrain.stop import StopSignals, launcher_is_gone
from pretrain.trainer import DivergedError, Trainer

T = TypeVar("T")

# A change of these, or of eval.*, changes nothing that training computes (threads: its last bits, which is said); data
# sets are told apart by checksum, precision by what it resolved to.
HARMLESS = ("out", "checkpoint_every", "keep", "precision", "threads", "data.workers", "data.shards")
PHANTOM_KEY = b"phantom radiographs identify nobody"  # a fixed key, so that a seed gives the same shards everywhere


class Run:
    """One pretraining run in its folder; `execute` does all of it, from wherever an earlier try ended."""

    def __init__(self, config: Config, resume: str, state: PartialState) -> None:
        self.config = config
        self.resume = resume
        self.state = state
        self.main = state.is_main_process
        self.training = False
        self.folder = RunFolder(config.out)
        self.say: Callable[[str], None] = print if self.main else (lambda _: None)

    def execute(self) -> None:
        """Train to the end or to a stop. Raises the rooms' errors for a user's mistakes, before any work if it can."""
        config = self.config
        config.check(self.state.num_processes)
        self.precision = resolve_precision(config.precision, self.state.device)
        self.threads = resolve_threads(config.threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(self.threads)
        self.say(
            f"{config.backbone} on {self.state.num_processes} x {self.state.device.type}, {self.threads} threads each, "
            f"precision {self.precision.name} ({self.precision.why})"
        )
        paths, self.weights = parsed_shards(config.data.shards)
        self.sets = [ShardSet(path) for path in paths]
        self._on_main(self._open_folder)
        if not paths:
            self.sets = [ShardSet(self._on_main(self._phantom_shards))]
        self.labelled = labelled_sets(config, self.sets, self.say)
        stream = Stream(self.sets, self.weights, config.seed, config.data.shard_group)
        on_cpu = self.state.device.type == "cpu"
        self.trainer = Trainer(config, Accelerator(cpu=on_cpu, mixed_precision=self.precision.mixed), stream)
        self._restore()
        finished = self._on_main(lambda: self.folder.read_state().get("state")) == "finished"
        if finished and self.trainer.step == self.trainer.total:
            self.say(f"the run in {self.folder.path} is finished: see {self.folder.report}; --resume never starts anew")
            return
        epochs = self.trainer.total * config.data.batch_size / len(stream)
        self.say(
            f"{len(stream)} crops, {self.trainer.total} steps of {config.data.batch_size} crops ({epochs:.1f} epochs), "
            f"run folder {self.folder.path}"
        )
        self._on_main(self._begin)
        self.training = True  # from here on an error may be one rank's own
        if self._train() and self.main:
            self._finish()
        self.state.wait_for_everyone()

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
        self.folder.write_config(self.config)
        if not self.folder.views.exists():
            self._draw_views()

    def _phantom_shards(self) -> Path:
        """Render phantom radiographs and pack them as any archive, once; the shard folder."""
        config, data = self.config, self.config.data
        if not data.phantom_patients:
            raise ConfigError(
                "no shards given: --data.shards PATH ..., made with `python -m data_shards pack` "
                "(or --data.phantom_patients 300 for phantoms)"
            )
        name = f"seed-{config.seed}-{data.phantom_patients}x{data.phantom_views}-{data.phantom_holdout:g}"
        shards = self.folder.phantom / name
        if (shards / "manifest.json").exists():
            return shards
        archive = self.folder.phantom / f"{name}.zip"
        archive.parent.mkdir(parents=True, exist_ok=True)
        self.say(f"rendering {data.phantom_patients} phantom patients x {data.phantom_views} radiographs")
        # In this process: a spawned worker would import torch for longer than it renders.
        write_archive(archive, patients=data.phantom_patients, seed=config.seed, views=data.phantom_views)
        settings = PackConfig(
            sources=[str(archive)],
            out=shards,
            patient=r"(p\d+)-",
            holdout=data.phantom_holdout,
            key=PHANTOM_KEY,
            quiet=True,
        )
        manifest = pack(settings)
        self.say(f"packed {manifest['ledgers']['boxes']['used']} tooth crops into {shards}")
        return shards

    def _identity(self) -> str:
        """All that the run computes from, as JSON: settings, arithmetic, and the data by checksum."""
        settings = flat(json.loads(json.dumps(dataclasses.asdict(self.config))))
        kept = {k: v for k, v in settings.items() if k not in HARMLESS and not k.startswith("eval.")}
        data = [shards.checksum for shards in self.sets]
        return json.dumps(kept | {"precision": self.precision.name, "data": data, "data.weights": self.weights})

    def _circumstances(self) -> dict[str, Any]:
        """What moves the last bits of a float and is no setting."""
        return {
            "processes": self.state.num_processes,
            "threads": self.threads,
            "device": self.state.device.type,
            "torch": torch.__version__,
        }

    def _restore(self) -> None:
        """Load the checkpoint to continue from, the same one on every rank; refuse one of another run."""
        path = self._on_main(self._checkpoint)
        if path is None:
            return
        state = load_resume(path)
        old, new = json.loads(state.pop("identity", "{}")), json.loads(self._identity())
        if changed := _differences(old, new):
            raise ConfigError(
                f"{path} is of a run with other settings ({changed}); give those again, or another --out, "
                "or --resume never to move the old run aside"
            )
        self.trainer.load_state_dict(state)
        if later := self._on_main(lambda: self.folder.set_aside(self.trainer.step)):
            self.say(f"set aside in {self.folder.checkpoints}, being of later steps: {', '.join(later)}")
        if self.trainer.step < self.trainer.total:
            self.say(f"continuing from step {self.trainer.step}")
            if changed := _differences(json.loads(state["circumstances"]), self._circumstances()):
                self.say(f"note: samples and views are the same, the last bits of losses may not be ({changed})")

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
        metrics = MetricsLog(folder.metrics, trainer.step) if self.main else None
        if metrics and metrics.kept < trainer.step:
            self.say(f"warning: {folder.metrics} lacks {trainer.step - metrics.kept} of {trainer.step} earlier steps")
        bar = tqdm(total=trainer.total, initial=trainer.step, unit="step", disable=not self.main, dynamic_ncols=True)

        def log(line: dict[str, Any]) -> None:
            self.last_line = line
            if metrics:
                metrics.write(line)
            bar.set_postfix_str(f"loss {line['loss']:.3f}, {line['images_per_s']:.0f} crops/s", refresh=False)
            bar.update()

        def save() -> None:
            if self.main:
                self._save()
            self.state.wait_for_everyone()

        try:
            with StopSignals() as asked:
                complete = trainer.run(log, save, lambda: asked.stop or launcher_is_gone() or folder.stop.exists())
        except BaseException as error:
            if self.main:
                folder.write_state("failed", trainer.step)
            if isinstance(error, DivergedError):
                raise ConfigError(f"{error}; lower --optim.lr and start anew with --resume never") from error
            raise
        finally:
            bar.close()
            if metrics:
                metrics.close()
        if not complete and self.main:
            folder.write_state("stopped", trainer.step)
            folder.stop.unlink(missing_ok=True)
            self.say(f"stopped after step {trainer.step} of {trainer.total}; the same command continues")
        return complete

    def _save(self) -> None:
        """Weights for users and their facts, then the resume checkpoint: who continues from it finds both written."""
        folder, trainer = self.folder, self.trainer
        network = exported(trainer.teacher, self._calibration_crops, self.config)
        save_combined(folder.weights, network.backbone, network.proj_head)
        self._write_facts({})
        origin = {"identity": self._identity(), "circumstances": json.dumps(self._circumstances())}
        save_resume(folder.resume_file(trainer.step), trainer.state_dict() | origin)
        folder.prune(self.config.keep)
        folder.write_state("running", trainer.step)

    @cached_property
    def _calibration_crops(self) -> np.ndarray:
        return calibration_crops(self.trainer.stream, self.config.views.global_size)

    def _write_facts(self, scores: dict[str, Any]) -> dict[str, Any]:
        monitors = {
            name: self.last_line[name] for name in ("loss", "loss_over_ln_k", "teacher_entropy", "teacher_mean_entropy")
        }
        facts = weights_facts(
            self.config,
            self.sets,
            self.weights,
            features=self.trainer.student.backbone.num_features,
            precision=self.precision.name,
            step=self.trainer.step,
            total=self.trainer.total,
            scores=scores,
            monitors=monitors,
        )
        write_facts(self.folder.facts, facts)
        return facts

    def _finish(self) -> None:
        """Score the weights as their users will load them, write facts, report and summary."""
        lines = read_metrics(self.folder.metrics)
        if not lines:
            raise ConfigError(f"{self.resume} is at the last step of its run: nothing is left to do")
        self.last_line = lines[-1]
        trained = build_backbone(self.config.backbone)
        load_combined(self.folder.weights, trained)
        trained.to(self.state.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.labelled:
            self.say("scoring by k-NN, beside random weights, raw pixels and crop size")
        scores = {"knn": knn_of_run(self.config, trained, self.labelled, self.sets)} if self.labelled else {}
        facts = self._write_facts(scores)
        rows = summary_rows(lines, scores, self.config.method.prototypes)
        write_report(self.folder, rows, facts["settings"])
        self.folder.write_state("finished", self.trainer.step)
        self.say("\n" + format_summary(rows))
        self.say(f"\n  weights  {self.folder.weights}\n  facts    {self.folder.facts}\n  report   {self.folder.report}")

    def _draw_views(self) -> None:
        """The first picture of a run: what the networks will see."""
        shards = self.sets[0]
        chosen = [i * len(shards) // 4 for i in range(4)]
        keys = [(self.config.seed, 0, 0, i) for i in chosen]
        sheet = draw_views([shards.image(i) for i in chosen], MultiCrop(self.config.views), keys)
        encoded = cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()
        replace_atomically(self.folder.views, lambda file: file.write(encoded))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = sorted({*old, *new})
    return "; ".join(f"{k} was {old.get(k)}, now {new.get(k)}" for k in names if old.get(k) != new.get(k))
