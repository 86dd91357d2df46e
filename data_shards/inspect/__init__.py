"""Look at what was packed: verify, describe and draw shard folders and sources.

In: a shard folder, or the sources of a pack to come. Out: a list of problems, a summary as text or HTML, preview
images. Open `summary` first, then `verify`.
"""
