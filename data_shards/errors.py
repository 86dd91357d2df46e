"""What this room raises on a user's mistake or damaged data."""


class ShardError(ValueError):
    """Shards that are absent, damaged or not what they say. The message is one line: what, where, what to do."""


class CorruptError(ShardError):
    """A sample or shard that will never be readable as it is; other ShardErrors may pass, as a lost server does."""


class PackError(ValueError):
    """Inputs or settings from which no shards can be made. The message is one line: what, where, what to do."""


class MemberError(ValueError):
    """A member of a source that cannot be read. The message is a reason for the ledger and holds no name."""
