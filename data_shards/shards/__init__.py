"""The shard format: how a folder of shards is written, indexed, fetched, cached and read.

In: tar members, or a path or URL of a shard folder. Out: decoded samples, alone (`shard_set`) or as a shuffled
stream that can start at any step. Open `shard_set` first, then `stream`.
"""
