"""Lists in Redis: one string for each version and user, and beside them the sorted users of each version."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import msgspec

from leadre.store.contract import EVERYBODY, ListVersions, StoredList, check_users, has_list
from leadre.store.redis.connection import PAGE, RedisConnection

STATE = b"leadre:versions"  # the list versions, encoded
CURRENT = b"leadre:current"  # the name of the current version, for READ

_lists = msgspec.msgpack.Decoder(StoredList)
_versions = msgspec.msgpack.Decoder(ListVersions)
_encode = msgspec.msgpack.Encoder().encode

# KEYS: current. ARGV: user.
READ = r"""
local version = redis.call('GET', KEYS[1])
return version and redis.call('GET', 'leadre:list\0' .. version .. '\0' .. ARGV[1])
"""

# Compare and set. KEYS: versions, current. ARGV: old versions, new versions, name of the current one. Returns 1 if the
# old versions were stored.
CHANGE = r"""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
return 1
"""


class RedisLists:
    """The list methods of `contract.Store`."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    def put(self, version: str, lists: Mapping[str, StoredList]) -> None:
        check_users([user for user in lists if user != EVERYBODY])
        if version not in self.versions().names:
            self._change(lambda versions: versions.add(version))
        users = list(lists)
        for page in (users[start : start + PAGE] for start in range(0, len(users), PAGE)):
            with self._connection.errors():
                pipe = self._connection.bulk_client.pipeline(transaction=True)
                for user in page:
                    pipe.set(_list_key(version, user), _encode(lists[user]))
                pipe.zadd(_users_key(version), dict.fromkeys(page, 0))
                pipe.execute()

    def read(self, user: str) -> StoredList | None:
        if not has_list(user):
            return None
        value = self._connection.script(READ, [CURRENT], [user])
        return None if value is None else _lists.decode(value)

    def scan(self, version: str) -> Iterator[tuple[str, StoredList]]:
        self.versions().check(version)
        start = b"-"
        while page := self._connection.bulk("ZRANGEBYLEX", _users_key(version), start, "+", "LIMIT", 0, PAGE):
            users = [name.decode() for name in page]
            values = self._connection.bulk("MGET", *(_list_key(version, user) for user in users))
            for user, value in zip(users, values, strict=True):
                if value is not None:
                    yield user, _lists.decode(value)
            start = b"(" + page[-1]

    def versions(self) -> ListVersions:
        value = self._connection.command("GET", STATE)
        return ListVersions() if value is None else _versions.decode(value)

    def switch(self, version: str) -> None:
        self._change(lambda versions: versions.switch(version))

    def rollback(self) -> str:
        current = self._change(lambda versions: versions.rollback()).current
        assert current is not None
        return current

    def drop(self, version: str) -> None:
        self._change(lambda versions: versions.drop(version))
        while page := self._connection.bulk("ZRANGE", _users_key(version), 0, PAGE - 1):
            self._connection.bulk("UNLINK", *(_list_key(version, user.decode()) for user in page))
            self._connection.bulk("ZREM", _users_key(version), *page)

    def erase(self, user: str) -> None:
        """Delete the user's lists in all versions."""
        for version in self.versions().names:
            self._connection.bulk("DEL", _list_key(version, user))
            self._connection.bulk("ZREM", _users_key(version), user)

    def retain(self, after_us: int) -> int:
        """Delete lists made before ``after_us``, except the list for everybody; returns how many."""
        count = 0
        for version in self.versions().names:
            rows = self.scan(version)
            old = (user for user, listed in rows if user != EVERYBODY and listed.made_at_us < after_us)
            while users := list(islice(old, PAGE)):
                self._connection.bulk("UNLINK", *(_list_key(version, user) for user in users))
                self._connection.bulk("ZREM", _users_key(version), *users)
                count += len(users)
        return count

    def _change(self, change: Callable[[ListVersions], ListVersions]) -> ListVersions:
        """Apply a pure change to the versions; repeat it if another process changed them in between."""
        while True:
            before = self.versions()
            after = change(before)
            old = _encode(before) if before.names else b""
            arguments: list[bytes | str | int] = [old, _encode(after), after.current or ""]
            if after == before or self._connection.script(CHANGE, [STATE, CURRENT], arguments):
                return after


def _list_key(version: str, user: str) -> str:
    return f"leadre:list\0{version}\0{user}"


def _users_key(version: str) -> str:
    return f"leadre:users\0{version}"
