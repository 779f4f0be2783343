"""`RedisStore`: lists, profiles and caps on a Redis or Valkey server.

Keys begin with ``leadre:`` and join their parts with NUL, which no user ID contains. The server decides on
durability: without persistence it starts empty after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from leadre.store.contract import Cap, ListVersions, Profile, StoredList, is_possible
from leadre.store.redis.caps import RedisCaps
from leadre.store.redis.connection import RedisConnection
from leadre.store.redis.lists import RedisLists
from leadre.store.redis.profiles import RedisProfiles


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

    def write_profiles(self, *profiles: Profile) -> None:
        self._profiles.write(profiles)

    def reserve(
        self, user: str, caps: Sequence[Cap], *, now_us: int, until_us: int, count: int = 1
    ) -> dict[str, list[str]]:
        return self._caps.reserve(user, caps, now_us=now_us, until_us=until_us, count=count)

    def post(self, reservation: str) -> bool:
        return self._caps.post(reservation)

    def void(self, *reservations: str) -> None:
        self._caps.void(reservations)

    def erase(self, *users: str) -> None:
        for user in filter(is_possible, users):
            self._lists.erase(user)
            self._profiles.erase(user)
            self._caps.erase(user)

    def retain(self, after_us: int, now_us: int) -> int:
        return self._lists.retain(after_us) + self._profiles.retain(after_us)  # caps expire by themselves

    def close(self) -> None:
        self._connection.close()
