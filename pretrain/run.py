"""The order of a run: folder, data, training, checkpoints, scores, report."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from augment import MultiCrop
from augment.preview import draw_views
from data_shards.pack import PackConfig, pack
from data_shards.phantom import write_archive
from data_shards.stream import ShardSet, Stream
from pretrain.checkpoint import load_resume, save_combined, save_resume
from pretrain.config import Config, ConfigError, parsed_shards
from pretrain.evaluate import calibrate_batchnorm, check_label, embed, knn_scores, load_labelled
from pretrain.facts import weights_facts, write_facts
from pretrain.precision import resolve_precision
from pretrain.report import format_summary, summary_rows, write_report
from pretrain.run_folder import MetricsLog, RunFolder, read_metrics
from pretrain.trainer import DivergedError, Trainer, build_networks

PHANTOM_KEY = b"phantom radiographs identify nobody"  # a fixed key, so that a seed gives the same shards everywhere


class Run:
    """One pretraining run in its folder; `execute` does all of it, from wherever an earlier try ended."""

    def __init__(self, config: Config, resume: str, state: PartialState) -> None:
        self.config = config
        self.resume = resume
        self.state = state
        self.main = state.is_main_process
        self.folder = RunFolder(config.out)
        self.say: Callable[[str], None] = print if self.main else (lambda _: None)

    def execute(self) -> None:
        """Train to the end or to a stop. Raises the rooms' errors for a user's mistakes, before any work if it can."""
        config = self.config
        config.check(self.state.num_processes)
        if self._is_finished():
            return
        precision = resolve_precision(config.precision, self.state.device)
        self.say(
            f"{config.backbone} on {self.state.num_processes} x {self.state.device.type}, "
            f"precision {precision.mixed.replace('no', 'fp32')} ({precision.why})"
        )
        self.sets, self.weights = self._open_data()
        self.eval_sets = self._open_labelled()
        stream = Stream(self.sets, self.weights, config.seed, config.data.shard_group)
        on_cpu = self.state.device.type == "cpu"
        self.trainer = Trainer(config, Accelerator(cpu=on_cpu, mixed_precision=precision.mixed), stream)
        self._restore()
        epochs = self.trainer.total * config.data.batch_size / len(stream)
        self.say(
            f"{len(stream)} crops, {self.trainer.total} steps of {config.data.batch_size} crops ({epochs:.1f} epochs), "
            f"run folder {self.folder.path}"
        )
        if self.main:
            self.folder.write_config(config)
            self._draw_views()
        if self._train() and self.main:
            self._finish()
        self.state.wait_for_everyone()

    def _is_finished(self) -> bool:
        """Make or find the run folder; True if it holds a finished run, which is then left alone."""
        folder, finished = self.folder, False
        if self.main:
            if self.resume == "never" and (aside := folder.move_aside()):
                self.say(f"moved the old run to {aside}")
            folder.create()
            folder.refuse_changed(self.config)
            folder.stop.unlink(missing_ok=True)
            finished = folder.read_state().get("state") == "finished"
            if finished:
                self.say(f"the run in {folder.path} is finished: see {folder.report}; --resume never starts anew")
        return bool(_from_main(finished))

    def _open_data(self) -> tuple[list[ShardSet], list[float] | None]:
        paths, weights = parsed_shards(self.config.data.shards)
        if not paths:
            if not self.config.data.phantom_patients:
                raise ConfigError(
                    "no shards given: --data.shards PATH ..., made with `python -m data_shards pack` "
                    "(or --data.phantom_patients 300 for phantoms)"
                )
            paths = [str(self._phantom_shards())]
        return [ShardSet(path) for path in paths], weights

    def _phantom_shards(self) -> Path:
        """Render phantom radiographs and pack them as any archive, once; every process gets the folder."""
        config, data = self.config, self.config.data
        name = f"seed-{config.seed}-{data.phantom_patients}x{data.phantom_views}"
        shards = self.folder.phantom / name
        if self.main and not (shards / "manifest.json").exists():
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
        self.state.wait_for_everyone()
        return shards

    def _open_labelled(self) -> list[ShardSet]:
        """The shard sets k-NN is measured on: those named, else the holdouts beside the training sets, else none."""
        holdouts = [shards.path / "holdout" for shards in self.sets]
        paths = self.config.eval.shards or [str(path) for path in holdouts if path.is_dir()]
        sets = [ShardSet(path) for path in paths]
        if sets:
            check_label(sets, self.config.eval.label)
        return sets

    def _restore(self) -> None:
        """Load the checkpoint to continue from, the same one on every rank."""
        path: Path | None = None
        if self.resume not in ("auto", "never"):
            path = Path(self.resume)
        elif self.main:
            path, warnings = self.folder.latest()
            for warning in warnings:
                self.say(f"warning: {warning}")
        path = _from_main(path)
        if path is not None:
            self.trainer.load_state_dict(load_resume(path))
            self.say(f"continuing from step {self.trainer.step}")

    def _train(self) -> bool:
        """Train to the end or to a stop; True when the run is complete."""
        trainer, folder = self.trainer, self.folder
        metrics = MetricsLog(folder.metrics, trainer.step) if self.main else None
        bar = tqdm(total=trainer.total, initial=trainer.step, unit="step", disable=not self.main, dynamic_ncols=True)

        def log(line: dict[str, Any]) -> None:
            if metrics:
                metrics.write(line)
            bar.set_postfix_str(f"loss {line['loss']:.3f}, {line['images_per_s']:.0f} crops/s", refresh=False)
            bar.update()

        def save() -> None:
            if self.main:
                self._save()
            self.state.wait_for_everyone()

        try:
            with _StopSignals() as asked:
                complete = trainer.run(log, save, lambda: asked.stop or folder.stop.exists())
        except DivergedError as error:
            if self.main:
                folder.write_state("failed", trainer.step)
            raise ConfigError(f"{error}; the last checkpoint is sound, lower --optim.lr and start anew") from error
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
        """Resume checkpoint first, then the weights for users and their facts."""
        folder, trainer = self.folder, self.trainer
        save_resume(folder.resume_file(trainer.step), trainer.state_dict())
        folder.prune(self.config.keep)
        save_combined(folder.weights, trainer.teacher.backbone, trainer.teacher.proj_head)
        self._write_facts({})
        folder.write_state("running", trainer.step)

    def _write_facts(self, scores: dict[str, Any]) -> dict[str, Any]:
        last = read_metrics(self.folder.metrics)[-1]
        monitors = {name: last[name] for name in ("loss", "loss_over_ln_k", "teacher_entropy")}
        progress = self.trainer.step, self.trainer.total
        facts = weights_facts(self.config, self.sets, self.weights, *progress, scores, monitors)
        write_facts(self.folder.facts, facts)
        return facts

    def _finish(self) -> None:
        """Score the teacher, write facts, report and summary."""
        scores = {"knn": self._knn()} if self.eval_sets else {}
        facts = self._write_facts(scores)
        rows = summary_rows(read_metrics(self.folder.metrics), scores, self.config.method.prototypes)
        write_report(self.folder, rows, facts["settings"])
        self.folder.write_state("finished", self.trainer.step)
        self.say("\n" + format_summary(rows))
        self.say(f"\n  weights  {self.folder.weights}\n  facts    {self.folder.facts}\n  report   {self.folder.report}")

    def _knn(self) -> dict[str, Any]:
        """k-NN of the teacher, of the random weights it began with, of raw pixels and of crop size."""
        config, evaluation = self.config, self.config.eval
        crops = load_labelled(self.eval_sets, evaluation.label, config.views.global_size)
        arguments = crops.images, config.mean, config.std, evaluation.batch_size
        untrained = build_networks(config)[1].backbone.to(self.state.device)
        calibrate_batchnorm(untrained, *arguments)
        before, after = embed(untrained, *arguments), embed(self.trainer.teacher.backbone, *arguments)
        return knn_scores(crops, before, after, evaluation.label, evaluation.neighbours, evaluation.folds)

    def _draw_views(self) -> None:
        """The first picture of a run: what the networks will see."""
        shards = self.sets[0]
        chosen = [i * len(shards) // 4 for i in range(4)]
        keys = [(self.config.seed, 0, 0, i) for i in chosen]
        sheet = draw_views([shards.image(i) for i in chosen], MultiCrop(self.config.views), keys)
        cv2.imwrite(str(self.folder.views), sheet[..., ::-1])


class _StopSignals:
    """While active, TERM, INT and USR1 ask for a stop at the next step; a second INT interrupts at once."""

    def __init__(self) -> None:
        self.stop = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True


def _from_main(value: Any) -> Any:
    """The main process's value, on every process."""
    return broadcast_object_list([value])[0]
