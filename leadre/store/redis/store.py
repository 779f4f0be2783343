"""`RedisStore`: lists, profiles and caps on a Redis or Valkey server.

Keys begin with ``leadre:`` and join their parts with NUL, which no user ID contains. The server decides on
durability: without persistence it starts empty after a restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from leadre.extended_ids import covers
from leadre.store.contract import Cap, ListVersions, Profile, StoredList, is_possible
from leadre.store.redis.caps import RedisCaps
from leadre.store.redis.connection import RedisConnection
from leadre.store.redis.lists import CURRENT, RedisLists
from leadre.store.redis.profiles import RedisProfiles

_GLOB = re.compile(r"[*?\[\]\\^]")  # have a meaning in a pattern of keys

# KEYS: current. ARGV: users.
FIND_USER = r"""
local version = redis.call('GET', KEYS[1])
for _, user in ipairs(ARGV) do
  local has_list = version and redis.call('EXISTS', 'leadre:list\0' .. version .. '\0' .. user) == 1
  if has_list or redis.call('EXISTS', 'leadre:profile\0' .. user) == 1 then return user end
end
return nil
"""


class RedisStore:
    """`contract.Store` at ``url``; the first call connects. InputError if ``url`` is no address.

    A server that does not answer within ``timeout_ms`` is StoreDown.
    """

    def __init__(self, url: str, *, timeout_ms: float = 20.0) -> None:
        self._connection = RedisConnection(url, timeout_ms=timeout_ms)
        self._lists = RedisLists(self._connection)
        self._profiles = RedisProfiles(self._connection)
        self._caps = RedisCaps(self._connection)

    def put_lists(self, version: str, lists: Mapping[str, StoredList]) -> None:
        self._lists.put(version, lists)

    def read_list(self, user: str) -> StoredList | None:
        return self._lists.read(user)

    def scan(self, version: str) -> Iterator[tuple[str, StoredList]]:
        return self._lists.scan(version)

    def versions(self) -> ListVersions:
        return self._lists.versions()

    def switch(self, version: str) -> None:
        self._lists.switch(version)

    def rollback(self) -> str:
        return self._lists.rollback()

    def drop(self, version: str) -> None:
        self._lists.drop(version)

    def read_profile(self, user: str) -> Profile | None:
        return self._profiles.read(user)

    def find_user(self, *users: str) -> str:
        possible = [user for user in users if is_possible(user)]
        value = self._connection.script(FIND_USER, [CURRENT], possible)
        return "" if value is None else value.decode()

    def write_profiles(self, *profiles: Profile) -> None:
        self._profiles.write(profiles)

    def reserve(
        self,
        user: str,
        caps: Sequence[Cap],
        *,
        now_us: int,
        until_us: int,
        count: int = 1,
        certain_us: int | None = None,
        holder: str = "",
    ) -> dict[str, list[str]]:
        return self._caps.reserve(
            user, caps, now_us=now_us, until_us=until_us, count=count, certain_us=certain_us, holder=holder
        )

    def post(self, reservation: str, user: str = "", cap: Cap | None = None) -> bool:
        return self._caps.post(reservation, user, cap)

    def void(self, *reservations: str) -> None:
        self._caps.void(reservations)

    def erase(self, *users: str) -> None:
        for user in filter(is_possible, users):
            for covered in {user, *self._extended(user)}:
                self._lists.erase(covered)
                self._profiles.erase(covered)
                self._caps.erase(covered)

    def _extended(self, user: str) -> set[str]:
        """The extended IDs, `source:id`, that an erasure of the user covers."""
        escaped = _GLOB.sub(r"\\\g<0>", user)
        keys = self._connection.scan(f"leadre:*:{escaped}")
        named = {key.decode().rpartition("\0")[2] for key in keys}
        return {name for name in named if covers([user], name)}

    def retain(self, after_us: int, now_us: int) -> int:
        return self._lists.retain(after_us) + self._profiles.retain(after_us)  # caps expire by themselves

    def close(self) -> None:
        self._connection.close()
