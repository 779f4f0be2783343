"""Bytes of a bid request -> its wire form, with the rules for values of a wrong type.

A request whose fields have the types of OpenRTB is decoded at once. If it has others, it is read a second time:

- null in a list, and "", [] or {} of another type, are absent: they state nothing.
- A whole number as text, 1.0, and true or false are read as the number, where a whole number is expected.
- Any other value of a wrong type is absent in a field that only describes (`openrtb_schema.Descriptive`). Elsewhere the
  request is refused: without the field, a bid could break a rule about money, privacy, blocks, sizes or deadlines.

JSON permits half a surrogate pair (RFC 8259, section 8.2), and JSON.stringify writes it for a text that was cut inside
an emoji. Unicode does not permit it, so such a text is a value of a wrong type.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from leadre.errors import BadRequest
from leadre.serve.protocol import openrtb_schema as wire

MAX_ODD_BYTES = 64 << 10  # of a body that is read a second time, which costs more; a longer one is refused
MAX_LEFT_OUT = 100  # values of one request; with more it is refused
HALF_PAIR = "\uffff"  # no character; it marks half a surrogate pair in a text
MAX_WHOLE_CHARS = 11  # of a whole number as text: a sign and ten digits
_WHOLE = range(-(2**31), 2**31)  # as in `openrtb_schema.Int`
# A pair, or half of one. The backslash begins an escape if an even number of backslashes is before it.
_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*+)(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_PAIR_BYTES = 12
_decode_strict = msgspec.json.Decoder(wire.Request).decode
_NAMES = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "array",
    dict: "object",
    type(None): "null",
}


def decode(body: bytes) -> tuple[wire.Request, tuple[str, ...]]:
    """(the request, its fields of which values were left out). BadRequest as in `openrtb.read`."""
    try:
        return _decode_strict(body), ()
    except msgspec.ValidationError as error:
        return _decode_odd(body, _refusal(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        refusal = BadRequest("body", f"is not JSON: {error}", "not_json")
        return _decode_odd(_SURROGATES.sub(_mark_half_pair, body[: MAX_ODD_BYTES + 1]), refusal)
    except RecursionError as error:
        raise BadRequest("body", "is nested too deeply", "depth") from error


def field_of(path: str) -> str:
    """A path without the numbers in it: ``imp[3].banner.w`` -> ``imp[].banner.w``."""
    return re.sub(r"\[\d+\]", "[]", path)


@lru_cache(maxsize=1)
def known_fields() -> frozenset[str]:
    """The paths of the fields that are read, without numbers, and "body"."""
    return frozenset(("body", *_paths(wire.Request, "")))


def _paths(kind: Any, path: str) -> Iterator[str]:
    if isinstance(kind, list):
        yield f"{path}[]"
        yield from _paths(kind[0], f"{path}[]")
    elif not isinstance(kind, tuple):
        for name, (field_kind, _) in _fields(kind).items():
            field = f"{path}.{name}" if path else name
            yield field
            yield from _paths(field_kind, field)


def _decode_odd(body: bytes, refusal: BadRequest) -> tuple[wire.Request, tuple[str, ...]]:
    """Read a body that the strict decoder refused, for the reason ``refusal``."""
    if len(body) > MAX_ODD_BYTES:
        raise refusal
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal from error
    left_out: list[str] = []
    try:
        plain = _Reader(left_out).read(tree, wire.Request, "")
        return msgspec.convert(plain, wire.Request), tuple(dict.fromkeys(map(field_of, left_out)))
    except _OddValue as odd:
        why = f"Expected `{odd.expected}`, got `{odd.got}`"
        raise BadRequest(odd.path or "body", why, f"got_{odd.got}") from odd
    except msgspec.ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: msgspec.ValidationError) -> BadRequest:
    """The BadRequest for msgspec's message, which names the field and the types."""
    why, _, path = str(error).partition(" - at `$")
    path = path.strip(".`")
    missing = re.search(r"required field `(\w+)`", why)
    if missing:
        return BadRequest(".".join(filter(None, [path, missing[1]])), "is missing", "missing")
    got = re.search(r"got `(\w+)`", why)
    return BadRequest(path or "body", why, f"got_{got[1]}" if got else "range")


def _mark_half_pair(match: re.Match[bytes]) -> bytes:
    return match[0] if len(match[2]) == _PAIR_BYTES else match[1] + b"\\uffff"


class _OddValue(Exception):
    """A value of a wrong type. ``path`` begins at the request."""

    def __init__(self, path: str, expected: str, value: object) -> None:
        super().__init__(path)
        self.path = path.lstrip(".")
        self.expected = expected
        if isinstance(value, str):
            self.got = "half_pair" if HALF_PAIR in value else "str"
        else:
            self.got = _NAMES[type(value)]


class _Reader:
    """Reads plain JSON values by the types of the schema; ``left_out`` collects the paths of values that it drops."""

    def __init__(self, left_out: list[str]) -> None:
        self._left_out = left_out

    def read(self, value: Any, kind: Any, path: str, *, is_descriptive: bool = False) -> Any:
        """The value as ``kind`` wants it; None if it is absent. _OddValue if it is of a wrong type."""
        if value is None:
            return None
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._object(value, kind, path)
        if isinstance(kind, list):
            return self._items(value, kind[0], path, is_descriptive)
        return _scalar(value, kind, path)

    def _object(self, value: Any, kind: type[msgspec.Struct], path: str) -> Any:
        if not isinstance(value, dict):
            return _absent(value, "object", path)
        fields = {}
        for name, (field_kind, is_descriptive) in _fields(kind).items():
            if name in value:
                fields[name] = self._field(value[name], field_kind, f"{path}.{name}", is_descriptive)
        return fields

    def _items(self, value: Any, kind: Any, path: str, is_descriptive: bool) -> Any:
        if not isinstance(value, list):
            return _absent(value, "array", path)
        items = (
            self._field(item, kind, f"{path}[{number}]", is_descriptive)
            for number, item in enumerate(value)
            if item is not None
        )
        return [item for item in items if item is not None]

    def _field(self, value: Any, kind: Any, path: str, is_descriptive: bool) -> Any:
        try:
            return self.read(value, kind, path, is_descriptive=is_descriptive)
        except _OddValue as odd:
            if not is_descriptive or len(self._left_out) == MAX_LEFT_OUT:
                raise
            self._left_out.append(odd.path)
            return None


def _scalar(value: Any, kinds: tuple[type, ...], path: str) -> Any:
    if Any in kinds:  # a privacy signal, whose value of any type counts
        return value
    if type(value) in kinds:
        is_in_range = type(value) is not int or kinds == (float,) or value in _WHOLE
        is_text = type(value) is not str or HALF_PAIR not in value
        if is_in_range and is_text:
            return value
    elif kinds == (float,) and type(value) is int:
        return value
    elif kinds == (int,) and (whole := _whole(value)) is not None:
        return whole
    return _absent(value, " | ".join(_NAMES[kind] for kind in kinds), path)


def _whole(value: Any) -> int | None:
    """The whole number that text, a float or a boolean states; None if it is none, or out of range."""
    if isinstance(value, str):
        is_whole = len(value) <= MAX_WHOLE_CHARS and re.fullmatch(r"-?[0-9]+", value) is not None
    else:
        is_whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
    number = int(value) if is_whole else _WHOLE.stop
    return number if number in _WHOLE else None


def _absent(value: Any, expected: str, path: str) -> Any:
    """None for an empty value of a wrong type; _OddValue for another one."""
    if value in ("", [], {}):
        return None
    raise _OddValue(path, expected, value)


@lru_cache(maxsize=64)
def _fields(kind: type[msgspec.Struct]) -> Mapping[str, tuple[Any, bool]]:
    """Field of a struct -> (its plain type, whether it only describes)."""
    return {name: _plain(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}


def _plain(hint: Any) -> tuple[Any, bool]:
    """(a struct, [the plain type of a list's items] or a tuple of scalars; whether it is marked as `Descriptive`)."""
    if get_origin(hint) is Annotated:
        inner, *metas = get_args(hint)
        return _plain(inner)[0], any((meta.extra or {}).get(wire.DESCRIPTIVE) for meta in metas)
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [_plain(kind)[0] for kind in get_args(hint) if kind is not type(None)]
        return (kinds[0] if len(kinds) == 1 else sum(kinds, ())), False
    if get_origin(hint) is list:
        return [_plain(get_args(hint)[0])[0]], False
    is_struct = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
    return (hint if is_struct else (hint,)), False
