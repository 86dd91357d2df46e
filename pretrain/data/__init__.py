"""Samples as batches of views.

In: shard paths or phantoms, and the views' settings. Out: for each step the same batch on every try, with a record
of its samples. Open `multicrop_loader` first.
"""
