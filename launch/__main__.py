"""The commands of `python -m launch`: doctor, slurm."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState

from launch import checks
from launch.slurm import SlurmConfig, script
from pretrain.__main__ import MISTAKES, read_command_line
from pretrain.config.schema import Config, ConfigError
from pretrain.data.shard_sets import NO_SHARDS, parsed_shards
from pretrain.launch_check import mistake_at_start
from pretrain.method.trainer import NonFiniteError
from pretrain.models.backbones import build_backbone
from pretrain.runs.dry_run import Trial, prepare, small_phantom, trial
from pretrain.runtime.watchdog import PEER_LOST, Watchdog
from tooth_foundations.core.cli import fail, new_parser, one_line, read, run

PROG = "python -m launch"
T = TypeVar("T")
PATIENCE = 120.0  # seconds without progress that the doctor waits: its steps are few, and somebody watches


def slurm_command(argv: Sequence[str]) -> None:
    """Write an sbatch script for a run, or submit it; all other options are the run's own."""
    parser = new_parser(f"{PROG} slurm", slurm_command.__doc__ or "")
    parser.add_class_arguments(SlurmConfig)
    parser.add_argument("--script", type=str, default="pretrain.sbatch", help="file to write")
    parser.add_argument("--submit", type=bool, default=False, help="hand it to sbatch")
    own = {f"--{name}" for name in (*SlurmConfig.__dataclass_fields__, "script", "submit", "help")} | {"-h"}
    mine, runs = _split(argv, own)
    given = vars(read(parser, mine, lists=("--seeds",)))
    path, submit = Path(given.pop("script")), given.pop("submit")
    config, resume = read_command_line(runs)  # a mistake is told now, not when the job starts
    if resume != "auto":
        fail("--resume is given: a job that is requeued must continue its run, so leave it out")
    out, slurm = str(Path(config.out).absolute()), SlurmConfig(**given)
    try:
        text = script(slurm, _without(runs, "--out"), out, str(Path(__file__).parent.parent), str(Path.cwd()))
        _check_run(config, slurm)
    except ValueError as error:
        fail(error)
    if bash := shutil.which("bash"):
        read_by_bash = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True, check=False)
        if read_by_bash.returncode:
            fail(f"--setup is no command that bash can read: {one_line(read_by_bash.stderr)}")
    try:
        Path(f"{out}.slurm").mkdir(parents=True, exist_ok=True)  # Slurm makes no folder for its logs
        path.write_text(text)
    except OSError as error:
        fail(f"cannot write {error.filename} ({error.strerror}): give another --script or --out")
    print(f"wrote {path}; logs will be in {out}.slurm")
    if not submit:
        print(f"submit it with: sbatch {path}")
        return
    if not shutil.which("sbatch"):
        fail(f"there is no sbatch here: submit {path} where Slurm is")
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"sbatch refused {path}: {done.stderr.strip()}")
    print(done.stdout.strip())


def _check_run(config: Config, slurm: SlurmConfig) -> None:
    """Raise ValueError for what would end the job at its start, hours later; say what only the nodes can know."""
    for seed in slurm.seeds or [config.seed]:
        replace(config, seed=seed).check(slurm.nodes * slurm.processes)
    build_backbone(config.backbone)
    paths, _ = parsed_shards(config.data.shards)
    if not paths and not config.data.phantom_patients:
        raise ConfigError(NO_SHARDS)
    for path in [*paths, *config.eval.shards, *([config.init] if config.init else [])]:
        if "://" not in path and not Path(path).exists():
            print(f"note: there is no {Path(path).absolute()} on this machine; the nodes must have it")


def _split(argv: Sequence[str], own: set[str]) -> tuple[list[str], list[str]]:
    """The options named in `own`, with their values, and all others."""
    parts: tuple[list[str], list[str]] = ([], [])
    part = parts[1]
    for argument in argv:
        if argument.startswith("-"):
            part = parts[0] if argument.partition("=")[0] in own else parts[1]
        part.append(argument)
    return parts


def _without(argv: Sequence[str], option: str) -> list[str]:
    """`argv` without an option and its value."""
    kept, skip = [], False
    for argument in argv:
        skip_this, skip = skip, argument == option
        if not (skip_this or skip or argument.startswith(f"{option}=")):
            kept.append(argument)
    return kept


def doctor_command(argv: Sequence[str]) -> None:
    """Try, under a run's launcher and with its options, all that it needs; exit 1 if something is amiss."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: accelerate launch -m launch doctor [options of pretrain.py]\n\n{doctor_command.__doc__}")
        return
    config, _ = read_command_line(argv)
    with Watchdog(min(config.timeout, PATIENCE)) as watchdog:
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
        try:
            state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))  # the watchdog ends what hangs
            if mistake := mistake_at_start(os.environ, state.num_processes):
                raise ConfigError(mistake)
            rows = examined(config, state, watchdog)
        except (*MISTAKES, OSError) as error:
            watchdog.fail(f"error: {one_line(error)}")
        except RuntimeError as error:
            if PEER_LOST.search(str(error)):
                watchdog.lost()
            raise
        if state.is_main_process:
            print(checks.table(rows), flush=True)
    state.destroy_process_group()
    failed = any(row.advice for row in rows)
    if state.num_processes > 1:
        os._exit(failed)  # gloo's threads, left to the interpreter's end, abort it at times
    sys.exit(failed)


def examined(config: Config, state: PartialState, watchdog: Watchdog) -> list[checks.Row]:
    """Every check on all processes; the rows as the main process sees them, the same on all."""
    parents = Path(config.out).absolute().parents
    beside = next(parent for parent in parents if parent.is_dir())  # nothing is left behind
    scratch = None
    if state.is_main_process:
        scratch = tempfile.mkdtemp(prefix=".doctor-", dir=beside)
    folder = Path(checks.gathered(scratch)[0])
    try:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        rows = [
            checks.devices_row(state.device, local),
            checks.versions_row(checks.gathered(checks.versions())),
            checks.storage_row(folder, state.process_index),
        ]
        if rows[-1].advice:  # nothing that follows could be trusted, nor run
            return rows
        free = shutil.disk_usage(beside).free  # before the trial's own files
        own = state.is_main_process and not config.data.shards
        made = _on_all("data", lambda: small_phantom(config, folder) if own else None)
        if isinstance(made, checks.Row):
            return [*rows, made]
        phantom = checks.gathered(made)[0]
        ready = _on_all("data", lambda: prepare(config, state, phantom))
        if isinstance(ready, checks.Row):
            return [*rows, ready]
        found = _on_all("ten steps", lambda: trial(ready, state, watchdog, folder))
        if isinstance(found, checks.Row):
            return [*rows, found]
        trials: list[Trial] = checks.gathered(found)
        main = trials[0]
        slowest = max(t.step_seconds for t in trials)
        seconds = checks.all_reduce_seconds(main.parameters, state.device)
        peak = max(t.peak_bytes for t in trials)
        lasts = timedelta(seconds=round(main.seconds(config)))
        told = f"{main.rate:.1f} crops/s, {main.steps} steps in {lasts}, peak memory {peak / 1e9:.2f} GB a process"
        return [
            *rows,
            checks.network_row(seconds, main.parameters, slowest),
            checks.disk_row(free, main.disk_bytes(config)),
            checks.data_row(main.crops, min(t.reader_rate for t in trials), main.rate, max(t.waited for t in trials)),
            checks.Row("ten steps", told),
        ]
    finally:
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def _on_all(check: str, work: Callable[[], T]) -> T | checks.Row:
    """What `work` returns here; a failing row, on all processes, where it meets a mistake on one.

    Such a mistake comes before all that processes do together, or after it on the main process, or on all alike.
    """
    mistake = ""
    try:
        made = work()
    except (*MISTAKES, NonFiniteError, OSError) as error:
        mistake = one_line(error)
    mistakes = checks.gathered(mistake)
    failed = {rank: said for rank, said in enumerate(mistakes) if said}
    if not failed:
        return made
    ranks = "" if len(failed) == len(mistakes) else f" on rank {', '.join(map(str, failed))}"
    return checks.Row(check, f"a run would end at its start{ranks}", next(iter(failed.values())))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"doctor": doctor_command, "slurm": slurm_command}


def main(argv: Sequence[str]) -> None:
    """Run one command; a user's mistake is one line and exit 2."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {PROG} COMMAND ...\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<8} {command.__doc__}")
        print(f"\n`{PROG} COMMAND --help` explains every option.")
        return
    if argv[0] not in COMMANDS:
        fail(f"there is no command '{argv[0]}': use one of {', '.join(COMMANDS)}")
    run(lambda: COMMANDS[argv[0]](argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
