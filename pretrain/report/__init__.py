"""The page of a run: curves, sample crops, feature maps, scores.

In: a run folder and its weights. Out: one HTML file without network or scripts. Open `page` first.
"""
