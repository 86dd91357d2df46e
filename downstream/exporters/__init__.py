"""The weights in forms that other programs read: arrays, timm, ONNX, a model card.

In: weights and a folder. Out: files that were read back and gave the same features. Open `export` first.
"""
