"""JPEG of 12 bits in DICOM (extended, process 2 and 4), which neither Pillow nor OpenCV reads, through GDCM."""

import numpy as np


def decode_extended(codestream: bytes, rows: int, columns: int) -> np.ndarray:
    """A gray codestream as uint16 [rows, columns]. Raises ImportError without GDCM, ValueError on damage.

    pydicom declines to ask GDCM for these; GDCM's values for pydicom's own test file are the ones it is known by.
    """
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(codestream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimension(0, columns)
    image.SetDimension(1, rows)
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    text = image.GetBuffer()
    raw = text.encode("utf-8", "surrogateescape") if text else b""
    if len(raw) != 2 * rows * columns:
        raise ValueError("GDCM cannot read it")
    return np.frombuffer(raw, "<u2").reshape(rows, columns)
