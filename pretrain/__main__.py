"""One pretraining run from the command line."""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
import yaml
from accelerate import PartialState

from augment import RECIPES as VIEW_RECIPES
from augment import ViewError
from data_shards.errors import Mistake
from pretrain.config.bounds import LIMITS
from pretrain.config.schema import ChangedError, Config, ConfigError
from pretrain.launch_check import mistake_at_start
from pretrain.report.command import report_now, run_folder
from pretrain.run import Run
from pretrain.runtime.watchdog import PEER_LOST, WORKER_LOST, Watchdog, kill_workers
from tooth_foundations.core.cli import UserError, fail, new_parser, one_line, read

MISTAKES = (Mistake, ViewError)  # augment imports no other package
RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "demo"
VIEWS = {path.stem: path for path in sorted(VIEW_RECIPES.glob("*.yaml"))}
LISTS = ("--data.shards", "--eval.shards", "--log_with")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run; a user's mistake is one line on standard error and exit 2."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "report":
        report(argv[1:])
        return
    config, resume = read_command_line(argv)
    # Accelerate starts several CPU processes as one group only if it is told that there is no accelerator.
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    with Watchdog(config.timeout) as watchdog:
        try:
            # The watchdog ends what hangs, so collectives may wait while the main process renders or opens shards.
            state = PartialState(cpu=on_cpu, timeout=timedelta(days=1, seconds=2 * watchdog.timeout))
            if mistake := mistake_at_start(os.environ, state.num_processes):
                raise ConfigError(mistake)
            Run(config, resume, state, watchdog).execute()
        except (*MISTAKES, OSError) as error:
            watchdog.fail(f"error: {_told(error)}")
        except Exception as error:
            if PEER_LOST.search(str(error)) or isinstance(error, torch.distributed.DistError):
                watchdog.lost()
            if dead := WORKER_LOST.search(one_line(error)):
                what = f"a data worker died ({dead[0]}), often for want of memory"
                watchdog.end(2, f"error: {what}; the same command continues the run")
            watchdog.end(1, traceback.format_exc())
    state.destroy_process_group()
    kill_workers()


def report(argv: Sequence[str]) -> None:
    """Write a run's page as the run stands."""
    parser = new_parser(
        "python -m pretrain report",
        "Write RUN/report.html as the run stands: while it trains, or after it stopped. The run is not disturbed.",
    )
    parser.add_argument("run", type=str, help="Run folder (the --out of the run).")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads. Left out: as many as there are cores.")
    settings = read(parser, argv)
    least, most = LIMITS["threads"]
    if settings.threads is not None and not least <= settings.threads <= most:
        fail(f"--threads is {settings.threads}; give it a value from {least:g} to {most:g}, or leave it out")
    try:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        folder = run_folder(Path(settings.run))
        given = ["--config", str(folder.config), "--out", settings.run]
        config, _ = read_command_line(given, where=f"{folder.config} cannot be read: ")
        found = report_now(config)
    except (*MISTAKES, OSError) as error:
        fail(error)
    for missing in found.missing:
        print(f"warning: not on the page: {missing}")
    print(folder.report)


def _told(error: Exception) -> str:
    """What to say of a mistake: a line, and of changed settings their table."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"cannot read or write {error.filename} ({error.strerror}): check the path, its rights and the disk"
    return str(error) if isinstance(error, ChangedError) else one_line(error)


def recipe_file(name: str) -> Path:
    """The YAML file of a recipe. Raises UserError naming the valid recipes."""
    recipes = {path.stem: path for path in RECIPES.glob("*.yaml")}
    if name not in recipes:
        valid = ", ".join(sorted(recipes))
        raise UserError(f"there is no recipe '{name}'; valid: {valid} (or give your own file with --config)")
    return recipes[name]


def read_command_line(argv: Sequence[str], where: str = "") -> tuple[Config, str]:
    """The configuration and the value of --resume; a mistake ends the program with one line after `where`, exit 2."""
    parser = new_parser(
        "accelerate launch pretrain.py",
        "Pretrain a backbone on tooth crops without labels. With no argument: the demo, on phantom radiographs. "
        "The defaults below are those of --recipe; a reason may be that of another recipe's value.",
    )
    parser.add_argument("--config", action="config", help="YAML file of settings, such as a run's config.yaml.")
    parser.add_argument(
        "--recipe", type=str, default=DEFAULT_RECIPE, help="Named settings to start from; not used with --config."
    )
    parser.add_argument(
        "--resume",
        type=str,
        default="auto",
        help="auto: continue the run in --out if there is one; never: move it aside and start anew; "
        "PATH: continue from this resume checkpoint.",
    )
    parser.add_class_arguments(Config)
    arguments = _with_recipe(list(argv))
    if "--help" in argv or "-h" in argv:  # the defaults it shows are the recipe's
        parser.default_config_files = [file for option, file in pairwise(arguments) if option == "--config"]
    settings = read(parser, arguments, LISTS, where)
    fields = {name: getattr(settings, name) for name in Config.__dataclass_fields__}
    return Config(**fields), settings.resume


def _with_recipe(argv: list[str]) -> list[str]:
    """Put the recipe's file first, and let --steps and --epochs replace each other's value from it."""
    given = {a.partition("=")[0] for a in argv}
    recipes = _values_of("--recipe", argv)  # of which the last counts, as for every other option
    if "--config" not in given:
        try:
            argv = ["--config", str(recipe_file(recipes[-1] if recipes else DEFAULT_RECIPE)), *argv]
        except UserError as error:
            fail(error)
    elif named := _names_recipe(argv):
        fail(f"{named} has a line `recipe:`, and settings start from one place: remove it, or give --recipe instead")
    elif "--recipe" in given:
        fail("--recipe and --config are both given; each names the settings to start from, so give one of them")
    argv = _with_views(argv)
    for one, other in (("--steps", "--epochs"), ("--epochs", "--steps")):
        if one in given and other not in given:
            argv = [*argv, other, "null"]
    return argv


def _names_recipe(argv: list[str]) -> str | None:
    """Return a file of --config that names a recipe; the parser tells of one that cannot be read."""
    for file in _values_of("--config", argv):
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
            settings = yaml.safe_load(Path(file).read_text())
            if isinstance(settings, dict) and "recipe" in settings:
                return file
    return None


def _with_views(argv: list[str]) -> list[str]:
    """Make `--views NAME` a file of settings, read after those that the run starts from."""
    files: list[str] = []
    named: list[str] = []
    others: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option not in ("--config", "--views"):
            others.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if option == "--views" and value.lstrip().startswith("{"):
            others += ["--views", value]
        else:
            (files if option == "--config" else named).append(value)
    if len(named) > 1:
        fail(f"--views is given {len(named)} times ({', '.join(named)}): give one, and single settings beside it")
    if named and named[0] not in VIEWS:
        fail(f"there are no views '{named[0]}'; valid: {', '.join(VIEWS)} (or single settings, as --views.shear 0)")
    files += [str(VIEWS[name]) for name in named]
    return [*(part for file in files for part in ("--config", file)), *others]


def _values_of(option: str, argv: list[str]) -> list[str]:
    """Return every value that an option is given, in order."""
    found = []
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == option:
            found += [value] if equals else argv[i + 1 : i + 2]
    return found


if __name__ == "__main__":
    main()
