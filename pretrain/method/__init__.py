"""The method: losses, schedules, the training step and what is measured in it.

In: batches of views and a `Config`. Out: a trained student and teacher, and the figures of each step. Open `trainer`
first, then `losses`.
"""
