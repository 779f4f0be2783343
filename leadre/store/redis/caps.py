"""Frequency caps in Redis: reservations of impressions, decided by Lua scripts on the server.

Each user has a hash ``leadre:places``: day, NUL, campaign, NUL, reservation ID -> until_us, or 0 once posted. An entry
``leadre:held`` for each reservation ID holds the key and the field of that hash. Both expire by themselves.

One server, not a cluster: the scripts reach keys that they read from other keys.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from leadre.store.contract import DAYS_KEPT, Cap, check_caps, first_day, holder_tag
from leadre.store.redis.connection import RedisConnection
from leadre.units import US_PER_DAY, US_PER_S

CAPS_TTL_S = (DAYS_KEPT + 2) * US_PER_DAY // US_PER_S

# KEYS: the user's reservations. ARGV: now_us, until_us, seconds to live, first day that is kept, reservations per cap,
# prefix of the new IDs, which begins with the tag of their holder, then day-NUL-campaign-NUL and limit of each cap.
# Returns the new IDs of each cap.
RESERVE = r"""
local taken, granted, serial = {}, {}, 0
local held = redis.call('HGETALL', KEYS[1])
for i = 1, #held, 2 do
  local group, id = string.match(held[i], '^(.*%z)(%x+)$')
  local day, until_us = tonumber(string.match(held[i], '^%d+')), tonumber(held[i + 1])
  if day < tonumber(ARGV[4]) or (until_us ~= 0 and until_us <= tonumber(ARGV[1])) then
    redis.call('HDEL', KEYS[1], held[i])
    redis.call('DEL', 'leadre:held\0' .. id)
  elseif until_us == 0 or string.sub(id, 1, 8) == string.sub(ARGV[6], 1, 8) then
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

# KEYS: the entry of a reservation ID, and if the reservation may be made again, the user's reservations. ARGV: then its
# field and its seconds to live. Returns 1 if the reservation is counted.
POST = r"""
local entry = redis.call('HMGET', KEYS[1], 'places', 'field')
if not entry[1] or redis.call('HEXISTS', entry[1], entry[2]) == 0 then
  if not KEYS[2] then return 0 end
  entry = {KEYS[2], ARGV[1]}
  redis.call('HSET', KEYS[1], 'places', entry[1], 'field', entry[2])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('HSET', entry[1], entry[2], 0)
  redis.call('EXPIRE', entry[1], ARGV[2])
  return 1
end
redis.call('HSET', entry[1], entry[2], 0)
return 1
"""

# KEYS: the entries of reservation IDs.
VOID = r"""
for _, key in ipairs(KEYS) do
  local entry = redis.call('HMGET', key, 'places', 'field')
  if entry[1] and redis.call('HGET', entry[1], entry[2]) ~= '0' then
    redis.call('HDEL', entry[1], entry[2])
    redis.call('DEL', key)
  end
end
"""

# KEYS: the user's reservations.
ERASE = r"""
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  redis.call('DEL', 'leadre:held\0' .. string.match(field, '%x+$'))
end
redis.call('DEL', KEYS[1])
"""


class RedisCaps:
    """The cap methods of `contract.Store`."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

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
        check_caps(user, caps, now_us, until_us, count)
        id_prefix = holder_tag(holder).hex() + secrets.token_hex(8)
        day = first_day(now_us if certain_us is None else certain_us)
        arguments: list[str | int] = [now_us, until_us, CAPS_TTL_S, day, count, id_prefix]
        for cap in caps:
            arguments += [_group(cap), cap.limit]
        granted = self._connection.script(RESERVE, [_caps_key(user)], arguments)
        return {cap.campaign_id: [id_.decode() for id_ in ids] for cap, ids in zip(caps, granted, strict=True)}

    def post(self, reservation: str, user: str = "", cap: Cap | None = None) -> bool:
        keys = [_id_key(reservation)]
        arguments: list[str | int] = []
        if cap is not None:
            keys.append(_caps_key(user))
            arguments = [f"{_group(cap)}{reservation}", CAPS_TTL_S]
        return bool(self._connection.script(POST, keys, arguments))

    def void(self, reservations: Sequence[str]) -> None:
        if reservations:
            self._connection.script(VOID, [_id_key(reservation) for reservation in reservations], [])

    def erase(self, user: str) -> None:
        self._connection.script(ERASE, [_caps_key(user)], [])


def _group(cap: Cap) -> str:
    return f"{cap.day}\0{cap.campaign_id}\0"


def _caps_key(user: str) -> str:
    return f"leadre:places\0{user}"


def _id_key(reservation: str) -> str:
    return f"leadre:held\0{reservation}"
