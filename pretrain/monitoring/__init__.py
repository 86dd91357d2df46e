"""Whether a run learns, and who is told.

In: the figures of each step. Out: a diagnosis in plain words, a progress line, values in trackers. Open `diagnosis`
first, then `rules`.
"""
