"""The store on a Redis or Valkey server, which several machines share. Reservations are decided in Lua, on the server.

A server that does not answer is `StoreDown` after ``timeout_ms`` (after ten seconds where thousands of lists move), and
nothing is tried twice. What the server forgets in a restart is the server's business: without persistence it starts
empty, and so do lists and caps.

Keys begin with ``leadre:`` and join their parts with NUL, which no user ID holds. One server, not a cluster: the
scripts reach keys that they find in others.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from leadre.errors import InputError, StoreDown
from leadre.store.contract import (
    DAYS_KEPT,
    EVERYBODY,
    Cap,
    ListVersions,
    Profile,
    StoredList,
    check_caps,
    check_users,
    first_day,
    is_possible,
)
from leadre.units import US_PER_DAY, US_PER_S

BULK_TIMEOUT_MS = 10_000.0
PAGE = 1000
CAPS_TTL_S = (DAYS_KEPT + 2) * US_PER_DAY // US_PER_S
STATE, CURRENT = b"leadre:versions", b"leadre:current"  # all versions; the name of the current one, for READ

_lists = msgspec.msgpack.Decoder(StoredList)
_profiles = msgspec.msgpack.Decoder(Profile)
_versions = msgspec.msgpack.Decoder(ListVersions)
_encode = msgspec.msgpack.Encoder().encode

# KEYS: current. ARGV: user.
READ = r"""
local version = redis.call('GET', KEYS[1])
return version and redis.call('GET', 'leadre:list\0' .. version .. '\0' .. ARGV[1])
"""

# KEYS: versions, current. ARGV: versions as they were, as they shall be, name of the current one. 1 where it was so.
CHANGE = r"""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
return 1
"""

# A user's places are a hash: day, NUL, campaign, NUL, ID -> until_us, 0 once kept. An ID leads to its place.
# KEYS: places. ARGV: now_us, until_us, seconds to live, first day that matters, how many of each, start of the new IDs,
# then day-NUL-campaign-NUL and limit of each cap. Returns the new IDs of each cap.
RESERVE = r"""
local taken, granted, serial = {}, {}, 0
local held = redis.call('HGETALL', KEYS[1])
for i = 1, #held, 2 do
  local group, id = string.match(held[i], '^(.*%z)(%x+)$')
  local day, until_us = tonumber(string.match(held[i], '^%d+')), tonumber(held[i + 1])
  if day < tonumber(ARGV[4]) or (until_us ~= 0 and until_us <= tonumber(ARGV[1])) then
    redis.call('HDEL', KEYS[1], held[i])
    redis.call('DEL', 'leadre:held\0' .. id)
  else
    taken[group] = (taken[group] or 0) + 1
  end
end
for i = 7, #ARGV, 2 do
  local ids, free = {}, math.min(tonumber(ARGV[5]), tonumber(ARGV[i + 1]) - (taken[ARGV[i]] or 0))
  for n = 1, free do
    serial = serial + 1
    ids[n] = ARGV[6] .. string.format('%06x', serial)
    redis.call('HSET', KEYS[1], ARGV[i] .. ids[n], ARGV[2])
    redis.call('HSET', 'leadre:held\0' .. ids[n], 'places', KEYS[1], 'field', ARGV[i] .. ids[n])
    redis.call('EXPIRE', 'leadre:held\0' .. ids[n], ARGV[3])
  end
  granted[#granted + 1] = ids
end
if serial > 0 then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return granted
"""

# KEYS: what an ID leads to.
KEEP = r"""
local place = redis.call('HMGET', KEYS[1], 'places', 'field')
if not place[1] or redis.call('HEXISTS', place[1], place[2]) == 0 then return 0 end
redis.call('HSET', place[1], place[2], 0)
return 1
"""

RELEASE = r"""
for _, key in ipairs(KEYS) do
  local place = redis.call('HMGET', key, 'places', 'field')
  if place[1] and redis.call('HGET', place[1], place[2]) ~= '0' then
    redis.call('HDEL', place[1], place[2])
    redis.call('DEL', key)
  end
end
"""

# KEYS: places.
FORGET = r"""
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  redis.call('DEL', 'leadre:held\0' .. string.match(field, '%x+$'))
end
redis.call('DEL', KEYS[1])
"""


class RedisStore:
    """`contract.Store` at ``url``. InputError where that is no address; the server is first asked by the first call."""

    def __init__(self, url: str, *, timeout_ms: float = 20.0) -> None:
        self.url = url
        try:
            self._client, self._bulk = _connect(url, timeout_ms), _connect(url, BULK_TIMEOUT_MS)
        except ValueError as error:
            raise InputError(f"store at {_without_password(url)!r}: {error}; wants redis://HOST:PORT/DB") from error
        scripts = (READ, CHANGE, RESERVE, KEEP, RELEASE, FORGET)
        self._scripts = {text: self._client.register_script(text) for text in scripts}

    # Lists: version, NUL, user -> list; beside them the users of a version, sorted

    def put_lists(self, version: str, lists: Mapping[str, StoredList]) -> None:
        check_users(list(lists))
        if version not in self.versions().names:
            self._change(lambda known: known.with_name(version))
        users = list(lists)
        for page in (users[start : start + PAGE] for start in range(0, len(users), PAGE)):
            with self._answering():
                pipe = self._bulk.pipeline(transaction=True)
                for user in page:
                    pipe.set(_list_key(version, user), _encode(lists[user]))
                pipe.zadd(_users_key(version), dict.fromkeys(page, 0))
                pipe.execute()

    def read_list(self, user: str) -> StoredList | None:
        if not is_possible(user):
            return None
        found = self._script(READ, [CURRENT], [user])
        return None if found is None else _lists.decode(found)

    def scan(self, version: str) -> Iterator[tuple[str, StoredList]]:
        self.versions().check(version)
        after = b"-"
        while page := self._command(self._bulk, "ZRANGEBYLEX", _users_key(version), after, "+", "LIMIT", 0, PAGE):
            users = [name.decode() for name in page]
            values = self._command(self._bulk, "MGET", *(_list_key(version, user) for user in users))
            for user, value in zip(users, values, strict=True):
                if value is not None:
                    yield user, _lists.decode(value)
            after = b"(" + page[-1]

    def versions(self) -> ListVersions:
        found = self._command(self._client, "GET", STATE)
        return ListVersions() if found is None else _versions.decode(found)

    def switch(self, version: str) -> None:
        self._change(lambda known: known.switch(version))

    def rollback(self) -> str:
        current = self._change(lambda known: known.rollback()).current
        assert current is not None
        return current

    def drop(self, version: str) -> None:
        self._change(lambda known: known.without(version))
        while page := self._command(self._bulk, "ZRANGE", _users_key(version), 0, PAGE - 1):
            self._command(self._bulk, "UNLINK", *(_list_key(version, user.decode()) for user in page))
            self._command(self._bulk, "ZREM", _users_key(version), *page)

    # Profiles: user -> profile

    def read_profile(self, user: str) -> Profile | None:
        found = self._command(self._client, "GET", _profile_key(user)) if is_possible(user) else None
        return None if found is None else _profiles.decode(found)

    def write_profiles(self, *profiles: Profile) -> None:
        check_users([profile.user_id for profile in profiles])
        pairs = [(_profile_key(profile.user_id), _encode(profile.bounded())) for profile in profiles]
        if pairs:
            self._command(self._client, "MSET", *(part for pair in pairs for part in pair))

    # Caps

    def reserve(
        self, user: str, caps: Sequence[Cap], *, now_us: int, until_us: int, count: int = 1
    ) -> dict[str, list[str]]:
        check_caps(user, caps, now_us, until_us, count)
        asked: list[str | int] = [part for cap in caps for part in (f"{cap.day}\0{cap.campaign_id}\0", cap.limit)]
        about: list[str | int] = [now_us, until_us, CAPS_TTL_S, first_day(now_us), count, secrets.token_hex(12)]
        found = self._script(RESERVE, [_caps_key(user)], [*about, *asked])
        return {cap.campaign_id: [one.decode() for one in ids] for cap, ids in zip(caps, found, strict=True)}

    def keep(self, reservation: str) -> bool:
        return bool(self._script(KEEP, [f"leadre:held\0{reservation}"], []))

    def release(self, *reservations: str) -> None:
        if reservations:
            self._script(RELEASE, [f"leadre:held\0{one}" for one in reservations], [])

    def erase(self, *users: str) -> None:
        for user in filter(is_possible, users):
            for version in self.versions().names:
                self._command(self._bulk, "DEL", _list_key(version, user))
                self._command(self._bulk, "ZREM", _users_key(version), user)
            self._command(self._bulk, "DEL", _profile_key(user))
            self._script(FORGET, [_caps_key(user)], [])

    def retain(self, after_us: int, now_us: int) -> int:
        return self._retain_lists(after_us) + self._retain_profiles(after_us)  # caps end by themselves

    def _retain_lists(self, after_us: int) -> int:
        count = 0
        for version in self.versions().names:
            listed = (user for user, one in self.scan(version) if user != EVERYBODY and one.made_at_us < after_us)
            while users := list(islice(listed, PAGE)):
                self._command(self._bulk, "UNLINK", *(_list_key(version, user) for user in users))
                self._command(self._bulk, "ZREM", _users_key(version), *users)
                count += len(users)
        return count

    def _retain_profiles(self, after_us: int) -> int:
        count = 0
        with self._answering():
            keys = self._bulk.scan_iter(match=_profile_key("*"), count=PAGE)
            while page := list(islice(keys, PAGE)):
                values: Any = self._bulk.mget(page)
                for key, profile in (
                    (key, _profiles.decode(value)) for key, value in zip(page, values, strict=True) if value
                ):
                    if profile.retained(after_us) != profile:
                        self._bulk.transaction(partial(_retain, key=key, after_us=after_us), key)
                        count += 1
        return count

    def close(self) -> None:
        self._client.close()
        self._bulk.close()

    def _change(self, change: Callable[[ListVersions], ListVersions]) -> ListVersions:
        """Apply a pure change; again where another process came in between."""
        while True:
            before = self.versions()
            after = change(before)
            was = _encode(before) if before.names else b""
            if after == before or self._script(CHANGE, [STATE, CURRENT], [was, _encode(after), after.current or ""]):
                return after

    def _script(self, text: str, keys: Sequence[bytes | str], arguments: Sequence[bytes | str | int]) -> Any:
        with self._answering():
            return self._scripts[text](keys=keys, args=arguments)

    def _command(self, client: redis.Redis, *words: bytes | str | int) -> Any:
        with self._answering():
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreDown(f"store at {_without_password(self.url)}: {error}; is the server up?") from error


def _connect(url: str, timeout_ms: float) -> redis.Redis:
    """A client that fails in time: by itself it would try again for seconds."""
    timeout_s = timeout_ms / 1000
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )


def _retain(pipe: redis.client.Pipeline, *, key: bytes, after_us: int) -> None:
    """Called again where somebody else changes the profile meanwhile."""
    found: Any = pipe.get(key)
    pipe.multi()
    new = _profiles.decode(found).retained(after_us) if found else None
    if new is None:
        pipe.delete(key)
    else:
        pipe.set(key, _encode(new))


def _without_password(url: str) -> str:
    return re.sub(r"//.*@", "//", url)


def _list_key(version: str, user: str) -> str:
    return f"leadre:list\0{version}\0{user}"


def _users_key(version: str) -> str:
    return f"leadre:users\0{version}"


def _profile_key(user: str) -> str:
    return f"leadre:profile\0{user}"


def _caps_key(user: str) -> str:
    return f"leadre:places\0{user}"
