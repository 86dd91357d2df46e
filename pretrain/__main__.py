"""One pretraining run from command line to report."""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from augment import MultiCrop, ViewError
from augment.preview import draw_views
from data_shards.pack import PackConfig, pack
from data_shards.phantom import write_archive
from data_shards.stream import ShardError, ShardSet, Stream
from launch.cli import fail
from pretrain.backbones import BackboneError, build_backbone
from pretrain.checkpoint import CheckpointError, load_resume, save_combined, save_resume
from pretrain.command_line import read_command_line
from pretrain.config import Config, ConfigError, parsed_shards
from pretrain.evaluate import EvaluationError, calibrate_batchnorm, embed, knn_scores, load_labelled
from pretrain.facts import weights_facts, write_facts
from pretrain.precision import resolve_precision
from pretrain.report import format_summary, summary_rows, write_report
from pretrain.run_folder import MetricsLog, RunFolder, read_metrics
from pretrain.trainer import DivergedError, Trainer

PHANTOM_KEY = b"phantom radiographs identify nobody"  # a fixed key, so that a seed gives the same shards everywhere
MISTAKES = (BackboneError, CheckpointError, ConfigError, EvaluationError, ShardError, ViewError)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run; a user's mistake is one line on standard error and exit 2."""
    config, resume = read_command_line(sys.argv[1:] if argv is None else argv)
    state = PartialState()
    try:
        _Run(config, resume, state).execute()
    except MISTAKES as error:
        if state.is_main_process:
            fail(error)
        sys.exit(2)
    finally:
        state.destroy_process_group()


class _Run:
    """The order of a run: folder, data, training, scores, report."""

    def __init__(self, config: Config, resume: str, state: PartialState) -> None:
        self.config = config
        self.resume = resume
        self.state = state
        self.folder = RunFolder(config.out)
        self.say: Callable[[str], None] = print if state.is_main_process else (lambda _: None)

    def execute(self) -> None:
        config, state = self.config, self.state
        config.check(state.num_processes)
        precision = resolve_precision(config.precision, state.device)
        self.say(
            f"{config.backbone} on {state.num_processes} x {state.device.type}, "
            f"precision {precision.mixed.replace('no', 'fp32')} ({precision.why})"
        )
        if self._open_folder():
            return
        sets, weights = self._open_data()
        stream = Stream(sets, weights, config.seed, config.data.shard_group)
        trainer = Trainer(config, Accelerator(mixed_precision=precision.mixed), stream)
        self._restore(trainer)
        self._announce(stream, trainer)
        if self._train(trainer, sets, weights) and state.is_main_process:
            self._finish(trainer, sets, weights)
        state.wait_for_everyone()

    def _open_folder(self) -> bool:
        """Make or find the run folder; True if it holds a finished run, which is then left alone."""
        folder, config = self.folder, self.config
        finished = False
        if self.state.is_main_process:
            if self.resume == "never" and (aside := folder.move_aside()):
                self.say(f"moved the old run to {aside}")
            folder.create()
            folder.refuse_changed(config)
            finished = folder.read_state().get("state") == "finished"
            if finished:
                self.say(
                    f"the run in {folder.path} is finished: {folder.weights}, {folder.report} (--resume never anew)"
                )
            else:
                folder.write_config(config)
                folder.stop.unlink(missing_ok=True)
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
        data, shards = self.config.data, self.folder.phantom / "shards"
        if self.state.is_main_process and not (shards / "manifest.json").exists():
            archive = self.folder.phantom / "radiographs.zip"
            archive.parent.mkdir(parents=True, exist_ok=True)
            self.say(f"rendering {data.phantom_patients} phantom patients x {data.phantom_views} radiographs")
            workers = max(1, data.workers)
            write_archive(
                archive,
                patients=data.phantom_patients,
                seed=self.config.seed,
                views=data.phantom_views,
                workers=workers,
            )
            settings = PackConfig(
                sources=[str(archive)],
                out=shards,
                patient=r"(p\d+)-",
                holdout=data.holdout,
                workers=workers,
                key=PHANTOM_KEY,
                quiet=True,
            )
            manifest = pack(settings)
            self.say(f"packed {manifest['ledgers']['boxes']['used']} tooth crops into {shards}")
        self.state.wait_for_everyone()
        return shards

    def _restore(self, trainer: Trainer) -> None:
        """Load the checkpoint to continue from, the same one on every rank."""
        if self.resume not in ("auto", "never"):
            path: Path | None = Path(self.resume)
        else:
            path = None
            if self.state.is_main_process:
                path, warnings = self.folder.latest()
                for warning in warnings:
                    self.say(f"warning: {warning}")
            path = _from_main(path)
        if path is not None:
            trainer.load_state_dict(load_resume(path))
            self.say(f"continuing from step {trainer.step}")

    def _announce(self, stream: Stream, trainer: Trainer) -> None:
        config = self.config
        batches = trainer.total * config.data.batch_size / len(stream)
        self.say(
            f"{len(stream)} crops, {trainer.total} steps of {config.data.batch_size} crops ({batches:.1f} epochs), "
            f"run folder {self.folder.path}"
        )

    def _train(self, trainer: Trainer, sets: list[ShardSet], weights: list[float] | None) -> bool:
        """Train to the end or to a stop; True when the run is complete."""
        folder, main_process = self.folder, self.state.is_main_process
        if main_process and not folder.views.exists():
            self._draw_views(sets[0])
        metrics = MetricsLog(folder.metrics, trainer.step) if main_process else None
        bar = tqdm(total=trainer.total, initial=trainer.step, unit="step", disable=not main_process, dynamic_ncols=True)
        asked = _StopSignals()

        def log(line: dict[str, Any]) -> None:
            if metrics:
                metrics.write(line)
            bar.set_postfix_str(f"loss {line['loss']:.3f}, {line['images_per_s']:.0f} crops/s", refresh=False)
            bar.update()

        def save() -> None:
            if main_process:
                self._save(trainer, sets, weights)
            self.state.wait_for_everyone()

        def stop() -> bool:
            return asked.stop or folder.stop.exists()

        try:
            with asked:
                complete = trainer.run(log, save, stop)
        except DivergedError as error:
            if main_process:
                folder.write_state("failed", trainer.step)
            raise ConfigError(f"{error}; the last checkpoint is sound, lower --optim.lr and start anew") from error
        finally:
            bar.close()
            if metrics:
                metrics.close()
        if not complete and main_process:
            folder.write_state("stopped", trainer.step)
            folder.stop.unlink(missing_ok=True)
            self.say(f"stopped after step {trainer.step} of {trainer.total}; the same command continues")
        return complete

    def _save(self, trainer: Trainer, sets: list[ShardSet], weights: list[float] | None) -> None:
        """Resume checkpoint first, then the weights for users and their facts."""
        folder, teacher = self.folder, trainer.teacher
        save_resume(folder.resume_file(trainer.step), trainer.state_dict())
        folder.prune(self.config.keep)
        save_combined(folder.weights, teacher.backbone, teacher.proj_head)
        self._write_facts(trainer, sets, weights, {})
        folder.write_state("running", trainer.step)

    def _write_facts(
        self, trainer: Trainer, sets: list[ShardSet], weights: list[float] | None, scores: dict[str, Any]
    ) -> dict[str, Any]:
        last = read_metrics(self.folder.metrics)[-1]
        monitors = {name: last[name] for name in ("loss", "loss_over_ln_k", "teacher_entropy")}
        facts = weights_facts(self.config, sets, weights, trainer.step, trainer.total, scores, monitors)
        write_facts(self.folder.facts, facts)
        return facts

    def _finish(self, trainer: Trainer, sets: list[ShardSet], weights: list[float] | None) -> None:
        """Score the teacher, write facts, report and summary."""
        scores = self._scores(trainer)
        facts = self._write_facts(trainer, sets, weights, scores)
        rows = summary_rows(read_metrics(self.folder.metrics), scores, self.config.method.prototypes)
        write_report(self.folder, rows, facts["settings"])
        self.folder.write_state("finished", trainer.step)
        self.say("\n" + format_summary(rows))
        self.say(f"\n  weights  {self.folder.weights}\n  facts    {self.folder.facts}\n  report   {self.folder.report}")

    def _scores(self, trainer: Trainer) -> dict[str, Any]:
        """k-NN of the teacher, of the random weights it began with, of raw pixels and of crop size."""
        config, evaluation = self.config, self.config.eval
        paths = evaluation.shards or self._holdouts()
        if not paths:
            return {}
        crops = load_labelled([ShardSet(p) for p in paths], evaluation.label, config.views.global_size)
        arguments = crops.images, config.mean, config.std, evaluation.batch_size
        torch.manual_seed(config.seed)
        untrained = build_backbone(config.backbone).to(self.state.device)
        calibrate_batchnorm(untrained, *arguments)
        before, after = embed(untrained, *arguments), embed(trainer.teacher.backbone, *arguments)
        return {"knn": knn_scores(crops, before, after, evaluation.label, evaluation.neighbours, evaluation.folds)}

    def _holdouts(self) -> list[str]:
        paths, _ = parsed_shards(self.config.data.shards)
        folders = [Path(p) / "holdout" for p in paths or [str(self.folder.phantom / "shards")]]
        return [str(f) for f in folders if f.is_dir()]

    def _draw_views(self, shards: ShardSet) -> None:
        """The first picture of a run: what the networks will see."""
        chosen = [i * len(shards) // 4 for i in range(4)]
        keys = [(self.config.seed, 0, 0, i) for i in chosen]
        sheet = draw_views([shards.image(i) for i in chosen], MultiCrop(self.config.views), keys)
        cv2.imwrite(str(self.folder.views), sheet[..., ::-1])


class _StopSignals:
    """While active, TERM, INT and USR1 ask for a stop at the next step; a second INT interrupts at once."""

    def __init__(self) -> None:
        self.stop = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._ask)

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


if __name__ == "__main__":
    main()
