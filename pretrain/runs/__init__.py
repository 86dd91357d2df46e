"""One run on disk: its folder, checkpoints, metrics, and what a resume may change.

In: a `Config` and the state of the trainer. Out: files from which a killed run goes on bit by bit. Open `run_folder`
first.
"""
