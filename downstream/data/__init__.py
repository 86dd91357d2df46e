"""Labelled crops, and which patients train, validate and test.

In: shards, folders of classes, or tables with images. Out: crops with labels, in folds that split no patient. Open
`crops` first.
"""
