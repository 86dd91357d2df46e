"""Synthetic panoramic radiographs with known tooth boxes, for tests and first runs.

In: a seed and the number of a patient. Out: the same image and boxes on every machine, or an archive of them. Open
`render` first.
"""
