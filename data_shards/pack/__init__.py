"""A pack from start to end: sources and a plan of boxes into shard folders.

In: `PackConfig`. Out: a training folder and a holdout folder, with manifest and ledgers; equal input gives equal
bytes, with any number of workers. Open `pipeline` first; `crop_job` is the work on one file.
"""
