"""The files of one run: what is where, what a stopped run left, and the line a step."""

import dataclasses
import fcntl
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from data_shards.shards.remote import Url
from pretrain.checkpoints.weights_io import CheckpointError, load_resume, resume_files, save_resume, step_of
from pretrain.config.schema import Config, ConfigError
from pretrain.monitoring.rules import Verdict
from tooth_foundations.core.files import replace_atomically


class RunFolder:
    """Paths and small files of a run; its name is the folder's name."""

    def __init__(self, out: str | Path) -> None:
        self.path = Path(out)
        self.name = self.path.resolve().name
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.bad_samples = self.path / "bad_samples.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.state = self.path / "state.json"
        self.stop = self.path / "stop"
        self.report = self.path / "report.html"
        self.views = self.path / "views.png"
        self.curves = self.path / "curves.png"
        self.weights = self.path / f"{self.name}.pth"
        self.facts = self.path / f"{self.name}.json"
        self.best_weights = self.path / f"{self.name}-best.pth"
        self.best_facts = self.path / f"{self.name}-best.json"
        self.phantom = self.path / "phantom"
        self.trackers = self.path / "trackers"
        self.same_command = "the same command"
        """What continues the run, in words."""
        self.held = False
        """Whether this process holds the lock."""
        self.verdict: Verdict | None = None
        """The last one on the run."""

    def create(self) -> None:
        """Make the folders. Raises ConfigError if the path holds something that is not a run."""
        if self.facts == self.state:
            raise ConfigError(f"a run cannot be named '{self.name}': its facts and its state would be one file")
        self._refuse_strangers()
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def lock(self) -> None:
        """Hold the folder until this process ends. Raises ConfigError if another process trains in it.

        A POSIX record lock: unlike flock's it is not shared with forked data workers, which may outlive a killed run.
        """
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process is training in {self.path}; wait for it, stop it with `touch {self.stop}`, "
                "or give another --out"
            ) from None
        self.held = True

    def sweep(self) -> None:
        """Delete what writes left behind that were killed midway; only while the folder is locked."""
        for path in [*self.path.iterdir(), *self.checkpoints.iterdir()]:
            if self._is_half_written(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def set_aside(self, step: int) -> Path | None:
        """Move resume checkpoints of later steps than `step`, which the run no longer stems from, into a new folder.

        The best weights, if they are later too, and copies of the step logs go with them. Returns the folder, None if
        there is no such checkpoint: then a run that was killed comes to the step of its best weights again.
        """
        later = [path for path in resume_files(self.checkpoints) if step_of(path) > step]
        if not later:
            return None
        aside = _first_free(self.path / "aside")
        aside.mkdir()
        for log in (self.metrics, self.samples, self.bad_samples):
            if log.exists():
                shutil.copy(log, aside)
        best = [self.best_weights, self.best_facts] if self.best_step() > step else []
        for path in [*later, *best]:
            path.replace(aside / path.name)
        return aside

    def best_step(self) -> int:
        """The steps after which the best weights were written; 0 where there are none, or nothing tells."""
        try:
            return int(json.loads(self.best_facts.read_text())["training"]["step"]) if self.best_weights.exists() else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _refuse_strangers(self) -> None:
        if self.path.is_file() or (self.path.is_dir() and not self._is_run()):
            raise ConfigError(f"{self.path} exists and is not a run folder; give another --out")

    def _is_run(self) -> bool:
        """Whether the folder is a run's or empty; a run that died while its phantom was drawn has no config yet."""
        if self.config.is_file() and self.checkpoints.is_dir():
            return True
        begun = {self.checkpoints.name, self.phantom.name, ".lock"}
        return all(path.name in begun or self._is_half_written(path) for path in self.path.iterdir())

    def _is_half_written(self, path: Path) -> bool:
        """Whether `path` is what save_combined (a folder) or replace_atomically (a file) moves into its place."""
        if path.is_dir():
            own = re.fullmatch(rf"\.{re.escape(self.name)}(-best)?-\w{{8}}", path.name)
            return bool(own) and {p.name for p in path.iterdir()} <= {self.weights.name, self.best_weights.name}
        shown = self.report, self.views, self.curves
        files = (self.config, self.metrics, self.state, *shown, self.facts, self.best_facts)
        names = "|".join(
            [*(re.escape(file.name) for file in files), r"(step|milestone)-\d{8}\.pth", r"nonfinite-\d{8}\.(pth|json)"]
        )
        return bool(re.fullmatch(rf"\.({names})\.\d+", path.name))

    def move_aside(self) -> Path | None:
        """Rename an existing run to the first free `<name>.old-N`, and say where it went.

        Raises ConfigError if the path holds something that is not a run, or one that another process trains in.
        """
        self._refuse_strangers()
        if not self.path.exists():
            return None
        self.lock()
        return self.path.rename(_first_free(self.path.with_name(f"{self.path.name}.old")))

    def write_state(self, status: Literal["running", "finished", "stopped", "failed"], step: int) -> None:
        """Record how the run stands: its status, the number of steps done, and the verdict, if there is one yet."""
        content: dict[str, Any] = {"state": status, "step": step}
        full = content | ({"verdict": str(self.verdict)} if self.verdict else {})
        try:
            replace_atomically(self.state, lambda file: file.write(json.dumps(full).encode() + b"\n"))
        except OSError:  # a full disk still takes as many bytes as are there
            with self.state.open("r+b") as file:
                file.write(json.dumps(content).encode() + b"\n")
                file.truncate()

    def end_state(self, status: Literal["stopped", "failed"], step: int | None) -> None:
        """Record how a run ended that is recorded as running; without a step, the recorded one stays."""
        was = self.read_state()
        if was.get("state") == "running":
            self.write_state(status, was["step"] if step is None else step)

    def read_state(self) -> dict[str, Any]:
        """The last recorded state, or {} before the first. Raises ConfigError if the file is not what was written."""
        if not self.state.exists():
            return {}
        try:
            state = json.loads(self.state.read_text())
            return {"state": str(state["state"]), "step": int(state["step"])}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.state} is damaged; delete it, and the same command continues the run") from None

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration so that `--config` reads it back; of URLs without their secrets."""
        settings = _plain(dataclasses.asdict(config))
        for part in ("data", "eval"):
            settings[part]["shards"] = [str(Url(s)) if "://" in s else s for s in settings[part]["shards"]]
        text = yaml.safe_dump(settings, sort_keys=False)
        replace_atomically(self.config, lambda file: file.write(text.encode()))

    def latest(self) -> tuple[Path | None, list[str]]:
        """The newest resume checkpoint that is whole, and a warning for each newer one that is not.

        Returns (None, []) before the first. Raises CheckpointError if there are some and none is whole.
        """
        warnings: list[str] = []
        for path in resume_files(self.checkpoints):
            try:
                load_resume(path)
                return path, warnings
            except CheckpointError as error:
                warnings.append(f"{error} (falling back to the one before)")
        if warnings:
            raise CheckpointError(
                f"every checkpoint in {self.checkpoints} is damaged, and {self.weights.name} is as it was; "
                "--resume never moves the run aside and starts anew"
            )
        return None, []

    def standing(self) -> str:
        """What the same command would do now, in words."""
        saved = resume_files(self.checkpoints)
        return f"{self.same_command} " + (f"continues from step {step_of(saved[0])}" if saved else "starts anew")

    def resume_file(self, step: int, milestone: bool) -> Path:
        """The resume checkpoint after `step` steps."""
        return self.checkpoints / f"{'milestone' if milestone else 'step'}-{step:08d}.pth"

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` resume checkpoints, and the milestones."""
        for path in resume_files(self.checkpoints)[keep:]:
            if path.name.startswith("step-"):
                path.unlink()

    def keep_nonfinite(self, step: int, samples: list[dict[str, Any]], state: Mapping[str, Any]) -> tuple[Path, Path]:
        """Write what a step that went bad was given, and the state before it, which `--resume` replays; their paths."""
        given = self.path / f"nonfinite-{step:08d}.json"
        before = self.checkpoints / f"nonfinite-{step:08d}.pth"
        text = json.dumps({"step": step, "samples": samples}, indent=1) + "\n"
        replace_atomically(given, lambda file: file.write(text.encode()))
        save_resume(before, state)
        return given, before


def _first_free(stem: Path) -> Path:
    """`<stem>-N` for the first N from 1 that is not there."""
    taken = 1
    while (path := stem.with_name(f"{stem.name}-{taken}")).exists():
        taken += 1
    return path


def _plain(value: Any) -> Any:
    """Tuples to lists, so that YAML holds nothing of Python's own."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping under dotted names."""
    joined: dict[str, Any] = {}
    for key, value in nested.items():
        joined |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return joined
