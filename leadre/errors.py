"""The exceptions that leadre raises on purpose; any other exception is a bug and keeps its traceback.

LeadreError
+-- InputError         a config, a flag, a log file, a request of the management API
+-- MissingError       an unknown ID
+-- ConflictError      a change that contradicts the stored state
+-- ArtifactError      an artifact folder
+-- ShardError         a function mapped over shards
+-- BusyError          a full queue
+-- ClosedError        a closed engine
+-- PeerError          another process of the bidder
|   +-- RefusedError   a message that it will never accept
+-- FaultError         an unexpected exception, counted and reported
+-- BadRequest         a bid request (400)
+-- StoreDown          the store of lists, profiles and caps
|   +-- StoreBusy      a lock of the store that others hold
+-- TokenError         an event token (403)
|   +-- ForgedError    signed by none of our keys
|   +-- ExpiredError   too old
+-- ParityError        a replay that differs from the log
+-- StorageError       a full or failed disk
"""


class LeadreError(Exception):
    """Root of the tree: catches every exception that leadre raises on purpose."""


class InputError(LeadreError, ValueError):
    """An input of the user is wrong. The message names the fault, its place and the next step."""


class MissingError(LeadreError):
    """No object has this ID, or none that the caller may see."""


class ConflictError(LeadreError):
    """The change contradicts the stored state; the message names a change that is allowed."""


class ArtifactError(LeadreError):
    """An artifact folder is missing, damaged or of another kind. The message names the command that writes it."""


class ShardError(LeadreError):
    """A function mapped over shards failed. The message names the shard; ``__cause__`` is the original error."""


class BusyError(LeadreError):
    """An engine's queue is full. The message has its length; the client may retry or continue without a result."""


class ClosedError(LeadreError):
    """An engine was closed or has failed; it accepts and finishes no more requests."""


class PeerError(LeadreError):
    """Another process of the bidder is down or too slow. The caller continues without it."""


class RefusedError(PeerError):
    """Another process of the bidder, or the limit of a message, refuses this message for good: do not send it again."""


class FaultError(LeadreError):
    """An unexpected exception, which has been counted and reported; ``__cause__`` is the exception itself."""


class BadRequest(LeadreError, ValueError):
    """A bid request that cannot be processed: 400 with an empty body. ``field`` is the path of the wrong field.

    ``reason`` is one word for metrics, such as "missing" or "got_str"; it contains nothing of the request.
    """

    def __init__(self, field: str, why: str, reason: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.reason = reason


class StoreDown(LeadreError):
    """The store of lists, profiles and caps does not answer. The message names it; the next call tries again."""


class StoreBusy(StoreDown):
    """Another process holds a lock of the store for longer than the caller can wait. Reads go on."""


class TokenError(LeadreError):
    """The token of an event is not valid; the event is not counted."""


class ForgedError(TokenError):
    """No key of ours has signed this token in this form."""


class ExpiredError(TokenError):
    """A token of ours that has expired."""


class ParityError(LeadreError):
    """The replay of logged requests gave other answers. The message has their number and the report's path."""


class StorageError(LeadreError):
    """The disk is full or failed. The current write is lost as a whole; acknowledged writes are safe."""
