"""Errors that this package raises on a user's mistake or damaged data."""


class Mistake(ValueError):
    """A user's mistake or damaged input. The message is one line: what, where, what to do.

    Only the outermost function of a command turns it into that line on standard error and exit status 2.
    """


class ShardError(Mistake):
    """Shards that are absent, damaged or not what they say. The message is one line: what, where, what to do."""


class CorruptError(ShardError):
    """A sample or shard that will never be readable as it is; other ShardErrors may pass, as a lost server does."""


class PackError(Mistake):
    """Inputs or settings from which no shards can be made. The message is one line: what, where, what to do."""


class NothingNewError(PackError):
    """Every radiograph is in an earlier pack."""


class MemberError(ValueError):
    """A member of a source that cannot be read. The message is a reason for the ledger and holds no name."""
