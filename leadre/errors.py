"""The exceptions that leadre raises on purpose; everything else is a bug and keeps its traceback."""


class LeadreError(Exception):
    """Root of the tree: catch this to catch everything that leadre raises on purpose."""


class InputError(LeadreError, ValueError):
    """The user's fault (config, flag, log file). The message says what is wrong, where, and what to do next."""


class ArtifactError(LeadreError):
    """An artifact folder is missing, damaged or of another kind. The message says which command writes it."""


class ShardError(LeadreError):
    """A function mapped over shards failed. The message names the shard; ``__cause__`` is the original error."""


class BusyError(LeadreError):
    """An engine's queue is full. The message says how many wait; the client may try again or go without an answer."""


class ClosedError(LeadreError):
    """An engine was closed or has stopped, and takes and finishes no more requests."""


class StoreDown(LeadreError):
    """A store of lists, profiles or caps does not answer. The message says which; the next call tries anew."""
