"""JPEG lossless, and JPEG of 12 bits, through GDCM in a process of its own: it ends the process on some damaged images.

This end sends a line of JSON and the codestream; the other answers with the number of bytes and the values.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from typing import IO, Any, NamedTuple, cast

import numpy as np

SECONDS = 120
"""After which an image is given up; a panoramic radiograph takes less than one."""

_SYNTAXES = {
    "1.2.840.10008.1.2.4.51": "JPEGExtendedProcess2_4",
    "1.2.840.10008.1.2.4.57": "JPEGLosslessProcess14",
    "1.2.840.10008.1.2.4.70": "JPEGLosslessProcess14_1",
}
SYNTAXES = tuple(_SYNTAXES)
"""Transfer syntaxes that are decoded here."""
_START = "import sys; sys.path[:] = sys.argv[1:]; from data_shards.decode.jpeg_lossless import serve; serve()"


class Coded(NamedTuple):
    """A codestream's transfer syntax and the form of its values, as the DICOM header states them."""

    syntax: str
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: bool


class _Process:
    """GDCM's process, started when it is first asked and again after it has ended."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Leave the child, as after a fork: it is the other process's."""
        self.lock = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None

    def ask(self, codestream: bytes, form: Coded) -> bytes:
        """The values' bytes, empty where GDCM failed or ended."""
        question = json.dumps([len(codestream), *form]).encode() + b"\n" + codestream
        with self.lock:
            fresh = self.child is None
            answer = self._try(question)
            if answer is None and not fresh:  # an earlier image or the system may have ended it
                answer = self._try(question)
        return answer or b""

    def _try(self, question: bytes) -> bytes | None:
        child = self.child or self._start()
        patience = threading.Timer(SECONDS, child.kill)
        patience.start()
        try:
            answer = _exchange(child, question)
        except OSError:  # it ended before it had read all
            answer = None
        finally:
            patience.cancel()
        if answer is None:
            self.end()
        return answer

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", _START, *sys.path]
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        return self.child

    def end(self) -> None:
        """End the child, if there is one."""
        if self.child is None:
            return
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()
        self.child = None


def _exchange(child: "subprocess.Popen[bytes]", question: bytes) -> bytes | None:
    """The answer of the child, None where it ended."""
    stdin, stdout = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
    stdin.write(question)
    stdin.flush()
    line = stdout.readline()
    answer = stdout.read(int(line)) if line else b""
    return answer if line and len(answer) == int(line) else None


_process = _Process()
atexit.register(_process.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forget)


def is_available() -> bool:
    """Whether GDCM is installed."""
    return sys.modules.get("gdcm", True) is not None and find_spec("gdcm") is not None


def decode(codestream: bytes, form: Coded) -> np.ndarray:
    """Values of the allocated bits, [rows, columns] or [rows, columns, samples]. Raises ValueError on damage."""
    raw = _process.ask(codestream, form)
    shape = (form.rows, form.columns, form.samples)[: 2 if form.samples == 1 else 3]
    if len(raw) != np.prod(shape) * form.allocated // 8:
        raise ValueError("GDCM cannot read it")
    return np.frombuffer(raw, f"<{'i' if form.signed else 'u'}{form.allocated // 8}").reshape(shape)


def serve() -> None:
    """The other end: decode until the pipe is closed."""
    while line := sys.stdin.buffer.readline():
        size, *form = json.loads(line)
        codestream = sys.stdin.buffer.read(size)
        try:
            values = _by_gdcm(codestream, Coded(*form))
        except Exception:
            values = b""
        sys.stdout.buffer.write(b"%d\n" % len(values) + values)
        sys.stdout.buffer.flush()


def _by_gdcm(codestream: bytes, form: Coded) -> bytes:
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(codestream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image: Any = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimension(0, form.columns)
    image.SetDimension(1, form.rows)
    image.SetDataElement(element)
    colours = gdcm.PhotometricInterpretation
    image.SetPhotometricInterpretation(colours(colours.MONOCHROME2 if form.samples == 1 else colours.RGB))
    image.SetPixelFormat(gdcm.PixelFormat(form.samples, form.allocated, form.stored, form.stored - 1, int(form.signed)))
    image.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, _SYNTAXES[form.syntax])))
    text = image.GetBuffer()
    return text.encode("utf-8", "surrogateescape") if text else b""
