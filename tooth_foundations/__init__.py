"""The project as one package: what every other package shares, and the names that a user imports.

In: nothing. Out: `core`, the bottom that every package may import. This module imports nothing, so that it costs
nothing. Open `core.cli` first.
"""
