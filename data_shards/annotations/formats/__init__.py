"""One module for each annotation format; none imports another.

In: the text of one file. Out: `Annotation`s with boxes or outlines in the file's own coordinates, or a
`FormatError` that says what to export instead. Open `coco` first, the most common one; a new format is entered in
`annotations/detect.py`.
"""
