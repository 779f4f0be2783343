"""The exceptions that leadre raises on purpose; everything else is a bug and keeps its traceback."""


class LeadreError(Exception):
    """Root of the tree: catch this to catch everything that leadre raises on purpose."""


class InputError(LeadreError, ValueError):
    """The user's fault (config, flag, log file). The message says what is wrong, where, and what to do next."""


class MissingError(LeadreError):
    """Nothing has the ID that was named, or nothing that the caller may see."""


class ConflictError(LeadreError):
    """What is asked contradicts what is there; the message says what may be done instead."""


class ArtifactError(LeadreError):
    """An artifact folder is missing, damaged or of another kind. The message says which command writes it."""


class ShardError(LeadreError):
    """A function mapped over shards failed. The message names the shard; ``__cause__`` is the original error."""


class BusyError(LeadreError):
    """An engine's queue is full. The message says how many wait; the client may try again or go without an answer."""


class ClosedError(LeadreError):
    """An engine was closed or has stopped, and takes and finishes no more requests."""


class PeerError(LeadreError):
    """Another process of the same bidder is not there or too slow. Whoever asked goes on without it."""


class BadRequest(LeadreError, ValueError):
    """A bid request that cannot be acted on: answer 400 with an empty body. ``field`` is the path of what is wrong."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field


class StoreDown(LeadreError):
    """A store of lists, profiles or caps does not answer. The message says which; the next call tries anew."""


class TokenError(LeadreError):
    """An event's token is not good: the event counts for nothing. Its kinds follow."""


class ForgedError(TokenError):
    """A token that none of our keys has signed, or not as it stands."""


class ExpiredError(TokenError):
    """A token of ours whose time is over."""


class ParityError(LeadreError):
    """A logged request was answered otherwise in a replay. The message says how many, and what tells of each."""


class StorageError(LeadreError):
    """The disk is full or failed. What was being written is not there; what was acknowledged before is."""
