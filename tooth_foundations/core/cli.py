"""The one way in which every command of this project reads its command line (jsonargparse underneath)."""

import argparse
import difflib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the string below a field is its --help


class UserError(Exception):
    """A mistake of the user's: what is wrong, where, and what to do, in one line."""


def new_parser(prog: str, description: str) -> ArgumentParser:
    """A parser that raises on a mistake instead of printing usage, so that `read` can say it in one line."""
    return ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)


def fail(message: object) -> NoReturn:
    """Print one line on standard error and exit with 2, as every command does on a user's mistake.

    For what every process that a launcher started finds alike, such as a wrong option: the first one tells it.
    """
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def prepare_output() -> None:
    """Let any terminal take the output: characters that it lacks become `?`, and a closed one takes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # for as long as the process lives
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def end_quietly() -> NoReturn:
    """Exit after a BrokenPipeError of standard output: its reader, such as `head`, has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
    sys.exit(128 + signal.SIGPIPE)


def one_line(message: object) -> str:
    """A message with its line breaks taken out."""
    return " ".join(str(message).split())


def read(parser: ArgumentParser, argv: Sequence[str], lists: Sequence[str] = (), where: str = "") -> Namespace:
    """Parse `argv`; dataclass groups come back as instances.

    `-` and `_` mean the same in option names. The options named in `lists` take their items apart by spaces
    (`--data.shards a b`). A mistake ends the program through `fail`, naming the option and the valid ones, after
    `where` it is.
    """
    try:
        told = _with_values([_underscored(a) for a in argv], _switches(_subparser(parser, argv)))
        told = _with_whole_numbers(told, _subparser(parser, argv))
        return parser.instantiate(parser.parse_args(_fold_lists(told, lists)))
    except Exception as error:  # jsonargparse raises ArgumentError, NSKeyError, TypeError, yaml errors ...
        if isinstance(error, (KeyboardInterrupt, MemoryError)):
            raise
        fail(where + _explained(str(error), _subparser(parser, argv)))


def run(main: Callable[[], Any]) -> None:
    """Call `main`; a `UserError` becomes one line and exit 2."""
    try:
        main()
    except UserError as error:
        fail(error)


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _switches(parser: ArgumentParser) -> set[str]:
    """The options that are on or off."""
    actions = [action for action in parser._actions if getattr(action, "_typehint", None) is bool]
    return {option for action in actions for option in action.option_strings}


def _with_values(argv: list[str], switches: set[str]) -> list[str]:
    """`--drop_near` alone is `--drop_near true`."""
    following = [*argv, ""][1:]
    return [
        f"{argument}=true" if argument in switches and after.lower() not in ("true", "false", "yes", "no") else argument
        for argument, after in zip(argv, following, strict=True)
    ]


def _with_whole_numbers(argv: list[str], parser: ArgumentParser) -> list[str]:
    """Write `--steps 1e2` as `--steps 100`, where an option takes whole numbers and the value is one."""
    hints = {o: str(getattr(a, "_typehint", "")) for a in parser._actions for o in a.option_strings}
    whole = {o for o, hint in hints.items() if re.search(r"\bint\b", hint) and not re.search("float|list|tuple", hint)}
    written, before = [], ""
    for argument in argv:
        option, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        if option in whole and re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d+", value) and float(value).is_integer():
            argument = f"{option}={int(float(value))}" if equals else str(int(float(value)))
        written.append(argument)
        before = argument
    return written


def _fold_lists(argv: list[str], lists: Sequence[str]) -> list[str]:
    folded: list[str] = []
    given: dict[str, list[list[str]]] = {}  # what followed an option, each time
    places: dict[str, int] = {}  # of its value
    i = 0
    argv = [part for a in argv for part in (a.split("=", 1) if a.partition("=")[0] in lists else [a])]
    while i < len(argv):
        option = argv[i]
        folded.append(option)
        i += 1
        if option in lists:
            words = []
            while i < len(argv) and not argv[i].startswith("--"):
                words.append(argv[i])
                i += 1
            given.setdefault(option, []).append(words)
            if option in places:  # given twice: one longer list
                folded.pop()
                folded[places[option]] = json.dumps([item for each in given[option] for item in _items(each)])
            else:
                places[option] = len(folded)
                folded.append(words[0] if _is_flow(words) else json.dumps(words))
    return folded


def _is_flow(words: Sequence[str]) -> bool:
    """Whether a list is written as in a recipe: [a, b]."""
    return len(words) == 1 and words[0].startswith("[")


def _items(words: Sequence[str]) -> Sequence[Any]:
    return yaml.load(words[0], yaml.BaseLoader) if _is_flow(words) else words


def _explained(message: str, parser: ArgumentParser) -> str:
    """The library's message in plain words, with the valid names beside the one it is about."""
    message = one_line(message)
    known = sorted(a.lstrip("-") for a in _option_strings(parser))
    fields = [o.lstrip("-") for action in parser._actions for o in action.option_strings if o.lstrip("-") in known]
    if unknown := re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", message):
        bad = unknown[1] or unknown[2]
        group = re.search(r"Group '([\w.]+)' does not accept", message)
        full = f"{group[1]}.{bad}" if group else bad
        ends = [field for field in fields if field.rpartition(".")[2] == bad]  # the first group that has it
        near = ends[:1] or difflib.get_close_matches(full, known, n=1, cutoff=0.6)
        said = f"there is no field '{full}'" + (f" (did you mean '{near[0]}'?)" if near else "")
        if near and not any(k.startswith(full.rpartition(".")[0]) for k in known):  # a list of all would bury it
            return f"{said}; `--help` explains every field"
    elif ill_typed := re.search(r'Parser key "([\w.]+)": ', message):
        full = ill_typed[1]
        reason = re.sub(r"<class '(\w+)'>", r"\1", message[ill_typed.end() :]).replace("NoneType", "null")
        reason = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", reason)
        reason = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", reason)
        if union := re.search(r"Subtypes: \[(.*?)\] Errors:.* Given value: (.*)", reason):
            reason = f"Expected {union[1].replace(', ', ' or ')}. Got value: {union[2]}"
        said = f"the value of '{full}' does not fit: {reason.rstrip('. ')}"
        if "tuple" in reason:
            said += " (several values are written [64,48])"
        return f"{said}; `--help` explains it"
    else:
        return message.rstrip(". ") + ". `--help` explains every field"
    prefix = full.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == prefix] or known
    return f"{said}; valid here: {', '.join(siblings)}; `--help` explains them"


def _subparser(parser: ArgumentParser, argv: Sequence[str]) -> ArgumentParser:
    """The parser of the subcommand that `argv` names, or `parser` itself."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and argv and argv[0] in action.choices:
            return action.choices[argv[0]]
    return parser


def _option_strings(parser: ArgumentParser) -> set[str]:
    names = {o for action in parser._actions for o in action.option_strings if o.startswith("--") and "+" not in o}
    return names - {"--print_shtab", "--print_config", "--help"}
