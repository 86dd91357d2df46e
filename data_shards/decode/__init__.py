"""Bytes of an image file into gray pixels, whatever the format.

In: the bytes of a DICOM, PNG, JPEG, TIFF or other file, which may be damaged. Out: `Radiograph`s with their bit
depth and technical facts, or an error that names no patient. Open `radiograph` first.
"""
