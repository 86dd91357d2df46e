"""Archives of radiographs into WebDataset shards of tooth crops, and back out as an exact stream."""
