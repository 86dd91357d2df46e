"""Weights in files: resume checkpoints, released-format checkpoints and their metadata.

In: state dicts. Out: files that are complete or absent, and weights that are checked when read. Open `combined`
first.
"""
