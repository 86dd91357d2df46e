"""Masks: images that mark teeth or lesions in another image, and masks inside annotation files.

In: images of the inventory, run lengths, small rasters. Out: which image is a mask of which radiograph, and boxes
of its parts. Open `search` first.
"""
