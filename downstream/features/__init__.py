"""Weights ready for use, and the features that they give.

In: a checkpoint file and crops. Out: features [N, C], kept on disk for the next command. Open `weights` first.
"""
