"""Files of tensors that cannot lie: resume checkpoints, and the reading and writing that every kind of file shares.

All are written beside their place, synced, and moved over it, so that a reader never sees half a file.
"""

import errno
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from data_shards.errors import Mistake
from tooth_foundations.core.files import replace_atomically


class CheckpointError(Mistake):
    """A checkpoint that cannot be read or does not fit; names the file, what is wrong and what to do."""


def save_resume(path: Path, state: Mapping[str, Any]) -> None:
    """Write one resume checkpoint atomically: tensors, numbers and strings only, so that it loads with weights_only."""
    # Through a file object, so that the bytes do not depend on the file's name.
    replace_atomically(path, lambda file: torch_save(dict(state), file))


def load_resume(path: Path) -> dict[str, Any]:
    """Read a resume checkpoint after checking every byte against the zip's CRC (torch.load accepts a flipped bit).

    Raises CheckpointError if the file is torn or damaged.
    """
    content = read_weights(path)
    if not isinstance(content, dict) or "step" not in content:
        raise CheckpointError(f"{path} is not a resume checkpoint; give a file of <run>/checkpoints")
    return content


def resume_files(folder: Path) -> list[Path]:
    """The resume checkpoints of a run, `step-N.pth` and `milestone-N.pth`, newest first."""
    found = [path for path in folder.glob("*.pth") if re.fullmatch(r"(step|milestone)-\d+", path.stem)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The steps after which a resume checkpoint was written, by its name."""
    return int(path.stem.rpartition("-")[2])


def torch_save(content: Any, target: Any) -> None:
    """torch.save, but a disk that takes no more is an OSError; torch says it as a RuntimeError of its zip writer."""
    try:
        torch.save(content, target)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
            raise OSError(errno.EIO, "the disk takes no more, or fails", str(target)) from error
        raise


def read_weights(path: Path) -> Any:
    """What a .pth or safetensors file holds, told apart by content: tensors, numbers, strings and their containers.

    Raises CheckpointError if the file is absent, torn or damaged, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; check the path")
    try:
        content = path.read_bytes()
        if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):
            return load_safetensors(content)
        if content[:1] not in (b"P", b"\x80"):  # a zip's first byte, and that of a pickle of protocol 2 or later
            raise CheckpointError(f"{path} is no checkpoint (it begins with {content[:12]!r}); use another copy")
        if _is_torchscript(content):
            raise CheckpointError(f"{path} is TorchScript, which carries code: save its model's state_dict instead")
        if damaged := _damaged_member(content):
            raise CheckpointError(f"{path} is damaged (checksum of {damaged} is wrong); use another copy")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:  # whose own text says how to run the file's code
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {asked[1]}" if asked else "holds something else"
        raise CheckpointError(
            f"{path} cannot be read as weights: its pickle {what}, not tensors alone, and could run code, so it was "
            "not opened; save state dicts alone, or as safetensors"
        ) from error
    except Exception as error:  # a pickle that is none makes torch raise whatever its bytes happen to mean
        reason = " ".join(str(error).partition("This is an internal")[0].split())[:160].rstrip(". ")
        raise CheckpointError(
            f"{path} cannot be read as weights ({reason or type(error).__name__}); use another copy"
        ) from error


def _is_torchscript(content: bytes) -> bool:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


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
