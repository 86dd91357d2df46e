"""Two kinds of file: the released combined format for users of the weights, and resume checkpoints for the run itself.

Both are written beside their place, synced, and moved over it, so that a reader never sees half a file.
"""

import errno
import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.backbones import Backbone
from pretrain.heads import proj_head

StateDict = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; names the file, what is wrong and what to do."""


class MismatchError(CheckpointError):
    """Weights of another module: `missing`, `unexpected` and `reshaped` hold every key by its full name."""

    def __init__(self, path: str | Path, keys: dict[str, list[str]]) -> None:
        self.missing, self.unexpected, self.reshaped = keys["missing"], keys["unexpected"], keys["reshaped"]
        listed = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
            for kind, names in keys.items()
            if names
        )
        super().__init__(f"{path} does not fit: {listed}; build the backbone it was trained with")


def save_combined(path: str | Path, backbone: nn.Module, head: nn.Module) -> None:
    """Write `{"backbone": state dict, "proj_head": state dict}`, float32 on the CPU, replacing `path` atomically.

    The file is first written under its final name in a temporary folder: the root inside a .pth zip is the file's stem,
    so size and bytes depend on that name.
    """
    path = Path(path)
    combined = {"backbone": _released(backbone), "proj_head": _released(head)}
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        _torch_save(combined, written)
        _sync(written)
        written.replace(path)
    _sync(path.parent)


def read_combined(path: str | Path) -> tuple[StateDict, StateDict]:
    """The backbone's and the head's state dicts of a combined checkpoint.

    Accepts the forms in circulation: nested, flat with `backbone.` and `proj_head.` prefixes, either of them under
    `state_dict`. Raises CheckpointError for anything else. Nothing is unpickled but tensors.
    """
    content = _read(Path(path))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a combined checkpoint")
    parts = []
    for name in ("backbone", "proj_head"):
        nested = content.get(name)
        prefix = name + "."
        flat = {k.removeprefix(prefix): v for k, v in content.items() if str(k).startswith(prefix)}
        parts.append(dict(nested) if isinstance(nested, dict) else flat)
    if not all(parts) or not all(isinstance(value, Tensor) for part in parts for value in part.values()):
        first = ", ".join(map(str, list(content)[:4]))
        raise CheckpointError(
            f"{path} has no backbone and proj_head of tensors (its first keys: {first}); give a combined checkpoint"
        )
    return parts[0], parts[1]


def load_combined(path: str | Path, backbone: Backbone, head: proj_head | None = None) -> None:
    """Load a combined checkpoint into `backbone` and, if given, `head`: strictly, every key and shape.

    Raises MismatchError listing the missing, unexpected and reshaped keys, and then changes neither module.
    """
    backbone_state, head_state = read_combined(path)
    modules: list[tuple[nn.Module, StateDict]] = [(backbone, backbone_state)]
    ours, theirs = _named("backbone", backbone.state_dict()), _named("backbone", backbone_state)
    if head is not None:
        modules.append((head, head_state))
        ours, theirs = ours | _named("proj_head", head.state_dict()), theirs | _named("proj_head", head_state)
    mismatches = {
        "missing": [k for k in ours if k not in theirs],
        "unexpected": [k for k in theirs if k not in ours],
        "reshaped": [
            f"{k} {tuple(theirs[k].shape)} instead of {tuple(ours[k].shape)}"
            for k in ours
            if k in theirs and theirs[k].shape != ours[k].shape
        ],
    }
    if any(mismatches.values()):
        raise MismatchError(path, mismatches)
    for module, state in modules:
        module.load_state_dict(state, strict=True)


def save_resume(path: Path, state: Mapping[str, Any]) -> None:
    """Write one resume checkpoint atomically: tensors, numbers and strings only, so that it loads with weights_only."""
    # Through a file object, so that the bytes do not depend on the file's name.
    replace_atomically(path, lambda file: _torch_save(dict(state), file))


def load_resume(path: Path) -> dict[str, Any]:
    """Read a resume checkpoint after checking every byte against the zip's CRC (torch.load accepts a flipped bit).

    Raises CheckpointError if the file is torn or damaged.
    """
    content = _read(path)
    if not isinstance(content, dict) or "step" not in content:
        raise CheckpointError(f"{path} is not a resume checkpoint; give a file of <run>/checkpoints")
    return content


def resume_files(folder: Path) -> list[Path]:
    """The resume checkpoints of a run, `step-N.pth` and `milestone-N.pth`, newest first."""
    found = [path for kind in ("step", "milestone") for path in folder.glob(f"{kind}-*.pth")]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The steps after which a resume checkpoint was written, by its name."""
    return int(path.stem.rpartition("-")[2])


def replace_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Call `write` with a binary file beside `path`, sync it to disk and move it over `path`."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync(path.parent)


def _torch_save(content: Any, target: Any) -> None:
    """torch.save, but a disk that takes no more is an OSError; torch says it as a RuntimeError of its zip writer."""
    try:
        torch.save(content, target)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
            raise OSError(errno.EIO, "the disk takes no more, or fails", str(target)) from error
        raise


def _released(module: nn.Module) -> StateDict:
    # The OrderedDict that torch gives, with its `_metadata` of module versions: the published sizes include it.
    state = module.state_dict()
    for key, value in state.items():
        # Neither channels_last strides nor storage shared with other tensors reach the file.
        state[key] = value.detach().cpu().contiguous().clone()
    return state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; check the path")
    try:
        content = path.read_bytes()
        if damaged := _damaged_member(content):
            raise CheckpointError(f"{path} is damaged (checksum of {damaged} is wrong); use another copy")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a pickle that is none makes torch raise whatever its bytes happen to mean
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} cannot be read as weights ({reason or type(error).__name__}); use another copy"
        ) from error


def _damaged_member(content: bytes) -> str | None:
    """The first member of torch's zip whose bytes are not those written, by the zip's CRC.

    One bit in the zip's directory can keep the CRC from being looked at: a smaller size (zipfile then checks nothing),
    or the mark of a folder (torch then reads nothing, and gives whatever memory holds). torch writes neither.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):  # older torch wrote no zip; such a file carries no checksum
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            stored_whole = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
            if not stored_whole or member.external_attr & 0x10:
                return member.filename
        return archive.testzip()


def _named(part: str, state: StateDict) -> StateDict:
    return {f"{part}.{key}": tensor for key, tensor in state.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
