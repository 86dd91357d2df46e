"""The commands of `python -m data_shards`: pack, verify, describe, preview, locate, phantom."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_shards.errors import PackError, ShardError
from data_shards.inspect import preview as previewing
from data_shards.inspect import summary_text as describing
from data_shards.inspect import verify as verifying
from data_shards.inspect.summary import survey
from data_shards.inspect.summary_html import write_page
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.phantom.render import write_archive
from data_shards.pseudonyms import default_key_file, locate, table_beside
from data_shards.shards.shard_set import ShardSet
from tooth_foundations.core.cli import end_quietly, fail, new_parser, prepare_output, read
from tooth_foundations.core.text import counted, printable

PROG = "python -m data_shards"


def pack_command(argv: Sequence[str]) -> None:
    """Turn archives of radiographs into shards of tooth crops."""
    parser = new_parser(f"{PROG} pack", pack_command.__doc__ or "")
    parser.add_argument("sources", nargs="+", type=str, help=_SOURCES_HELP)
    parser.add_class_arguments(PackConfig, skip={"sources", "key", "against", "labels"})
    parser.add_argument("--key", type=str | None, default=None, help=_KEY_HELP)
    parser.add_argument("--against", type=list[str], default=[], help=_AGAINST_HELP)
    parser.add_argument("--labels", type=list[str], default=[], help=_LABELS_HELP)
    given = vars(read(parser, argv, lists=("--against", "--labels")))
    given["labels"] = [name for label in given["labels"] for name in label.split(",") if name]
    config = PackConfig(**given)
    manifest = pack(config)
    if not config.quiet:
        found, held = manifest["statistics"], manifest["holdout"]
        print("\n".join(describing.ledger_lines(manifest)))
        megabytes = sum(s["bytes"] for s in manifest["shards"]) / 1e6
        also = f"; held out: {held['samples']} of {held['patients']} patients" if held["samples"] else ""
        crops, patients = counted(found["samples"], "crop"), counted(found["patients"], "patient")
        print(f"{config.out}: {crops} of {patients}, {megabytes:.1f} MB{also}")


_SOURCES_HELP = "folders, zip, tar or 7z archives, image files, or quoted patterns of them ('clinic/**/*.zip')"
_KEY_HELP = "file with the secret that ids are made with (made if absent); default: the user's own key"
_AGAINST_HELP = "earlier shard folders, whose radiographs are dropped where the same pixels come again"
_LABELS_HELP = (
    "labels, one or several, whose texts travel whatever they say: columns that are not known, and known ones with "
    "other texts than dental terms (else left out, as they may hold names)"
)


def verify_command(argv: Sequence[str]) -> None:
    """Check a shard folder against its manifest, and every sample in it."""
    parser = new_parser(f"{PROG} verify", verify_command.__doc__ or "")
    parser.add_argument("dir", type=str, help="shard folder, or tars that others wrote")
    folder = Path(read(parser, argv).dir)
    problems = verifying.verify(folder)
    for problem in problems:
        print(problem)
    if problems:
        fail(f"{folder} has {len(problems)} problem(s), listed above: {problems[0]}")
    if verifying.is_packed(folder):
        print(f"{folder}: every checksum, ledger, index entry and sample is right")
    else:
        print(f"{folder}: every image can be decoded and no key stands twice; these shards state nothing more to check")


def describe_command(argv: Sequence[str]) -> None:
    """Say what a shard folder holds, as text and as a page with pictures."""
    parser = new_parser(f"{PROG} describe", describe_command.__doc__ or "")
    parser.add_argument("dir", type=str, help="shard folder, or tars that others wrote")
    parser.add_argument("--html", type=str | None, default=None, help=_HTML_HELP)
    given = read(parser, argv)
    samples = ShardSet(Path(given.dir))
    found = survey(samples)
    print(describing.as_text(found, Path(given.dir)))
    if given.html:
        write_page(samples, found, Path(given.html))
        print(f"\n{given.html}: the same with pictures, to open in a browser")


_HTML_HELP = "also write this page: the same with plots and crops, self-contained; it names no file"


def preview_command(argv: Sequence[str]) -> None:
    """Draw a contact sheet of shards, or the first radiographs of a source with their boxes."""
    parser = new_parser(f"{PROG} preview", preview_command.__doc__ or "")
    parser.add_argument("paths", nargs="+", type=str, help="shard folders, or anything that `pack` takes")
    parser.add_argument("--out", type=str, default="sheet.png", help="PNG to write")
    parser.add_argument("--boxes", type=str, default="auto", help="for sources, as in `pack`")
    parser.add_argument("--pixel_aspect", type=float | None, default=None, help="for sources, as in `pack`")
    parser.add_argument("--masks", type=str | None, default=None, help="for sources, as in `pack`")
    given = read(parser, argv)
    paths = [Path(path) for path in given.paths]
    print("\n".join(previewing.preview(paths, Path(given.out), given.boxes, given.pixel_aspect, given.masks)))


def locate_command(argv: Sequence[str]) -> None:
    """Say which file, radiograph, patient or box an id stands for, from the table beside the key."""
    parser = new_parser(f"{PROG} locate", locate_command.__doc__ or "")
    parser.add_argument("id", type=str, help="16 hex digits, as in a manifest, a ledger or a sample")
    parser.add_argument("--key", type=str | None, default=None, help="key file of that pack; default: the user's own")
    given = read(parser, argv)
    for kind, path in locate(table_beside(Path(given.key) if given.key else default_key_file()), given.id):
        print(f"{kind}\t{printable(path)}")


def phantom_command(argv: Sequence[str]) -> None:
    """Write an archive of rendered radiographs with their tooth boxes."""
    parser = new_parser(f"{PROG} phantom", phantom_command.__doc__ or "")
    parser.add_argument("--out", type=str, required=True, help="zip to write")
    parser.add_argument("--patients", type=int, required=True, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the archive is a pure function of it")
    parser.add_argument("--views", type=int, default=1, help="radiographs of each patient")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    given = read(parser, argv)
    counts = {name: getattr(given, name) for name in ("patients", "seed", "views", "workers")}
    try:
        write_archive(Path(given.out), **counts)
    except ValueError as error:
        fail(error)
    print(f"{given.out}: {given.patients} patients, {given.patients * given.views} radiographs")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "pack": pack_command,
    "verify": verify_command,
    "describe": describe_command,
    "preview": preview_command,
    "locate": locate_command,
    "phantom": phantom_command,
}


def main(argv: Sequence[str]) -> None:
    """Run one command; a user's mistake is one line and exit 2."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {PROG} COMMAND ...\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<9} {command.__doc__}")
        print(f"\n`{PROG} COMMAND --help` explains every option.")
        return
    if argv[0] not in COMMANDS:
        fail(f"there is no command '{argv[0]}': use one of {', '.join(COMMANDS)}")
    try:
        COMMANDS[argv[0]](argv[1:])
        sys.stdout.flush()
    except (PackError, ShardError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("stopped: the same command continues an unfinished pack", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        end_quietly()
    except OSError as error:
        fail(f"cannot read or write {error.filename or 'the output'} ({error.strerror}): check the path and its rights")


if __name__ == "__main__":
    prepare_output()
    main(sys.argv[1:])
