"""Profiles in Redis: one string for each user."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import redis

from leadre.store.contract import Profile, check_users, is_possible
from leadre.store.redis.connection import PAGE, RedisConnection

_profiles = msgspec.msgpack.Decoder(Profile)
_encode = msgspec.msgpack.Encoder().encode


class RedisProfiles:
    """The profile methods of `contract.Store`."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    def read(self, user: str) -> Profile | None:
        value = self._connection.command("GET", _profile_key(user)) if is_possible(user) else None
        return None if value is None else _profiles.decode(value)

    def write(self, profiles: Sequence[Profile]) -> None:
        check_users([profile.user_id for profile in profiles])
        pairs = [(_profile_key(profile.user_id), _encode(profile.bounded())) for profile in profiles]
        if pairs:
            self._connection.command("MSET", *(word for pair in pairs for word in pair))

    def erase(self, user: str) -> None:
        self._connection.bulk("DEL", _profile_key(user))

    def retain(self, after_us: int) -> int:
        """Apply `Profile.retained` to every profile; returns how many changed or were deleted."""
        count = 0
        client = self._connection.bulk_client
        with self._connection.errors():
            keys = client.scan_iter(match=_profile_key("*"), count=PAGE)
            while page := list(islice(keys, PAGE)):
                values: Any = client.mget(page)
                for key, value in zip(page, values, strict=True):
                    if not value:
                        continue
                    profile = _profiles.decode(value)
                    if profile.retained(after_us) != profile:
                        client.transaction(partial(_retain, key=key, after_us=after_us), key)
                        count += 1
        return count


def _retain(pipe: redis.client.Pipeline, *, key: bytes, after_us: int) -> None:
    """Transaction on one profile; the client calls it again if another process changed the profile in between."""
    value: Any = pipe.get(key)
    pipe.multi()
    retained = _profiles.decode(value).retained(after_us) if value else None
    if retained is None:
        pipe.delete(key)
    else:
        pipe.set(key, _encode(retained))


def _profile_key(user: str) -> str:
    return f"leadre:profile\0{user}"
