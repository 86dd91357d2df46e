"""The settings of a run: their names, defaults and limits, and the rules behind `auto`.

In: recipes and options of the command line. Out: a checked `Config` in which every number is set. Open `schema`
first, then `auto`.
"""
