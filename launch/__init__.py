"""Start runs: a check of the machine, Slurm scripts, configurations for Accelerate.

In: a run's own options. Out: a table of what would fail, or a script for a cluster. Open `__main__` first.
"""
