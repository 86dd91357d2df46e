"""Archives of radiographs into WebDataset shards of tooth crops, and back out as an exact stream.

In: folders, zip, tar and 7z archives, DICOM and other image files, annotations of any known format. Out: shard
folders with a manifest and ledgers, and their samples in an order that follows from a seed. Open
`pack/pipeline.py` first; `shards/stream.py` is what training reads.
"""
