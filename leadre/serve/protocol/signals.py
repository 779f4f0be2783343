"""Privacy signals of a bid request, wherever they stand: in request, site, app, user, regs, device, or their ``ext``.

Senders do not agree on the places, so each signal is read in all of them, and the stricter copy counts:

- A flag (GDPR, GPC, COPPA, limited tracking, do not track) is absent if it is missing, null or ""; 0, "0", false and
  "false" are no; any other value, of any type, is yes. One yes outweighs every no.
- A text of another type is `UNREADABLE`. Two TC strings, or two GPP strings, that differ are replaced by it.
- A US privacy string that forbids personal ads wins over one that permits them.
- The GPP sections in force are those of all copies.
- The higher DSA requirement applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from leadre.serve.protocol import gpp
from leadre.serve.protocol import openrtb_schema as wire
from leadre.serve.protocol.countries import GDPR, alpha_3
from leadre.types import Signals

UNREADABLE = "?"  # in place of a consent string: no decoder accepts it
_NO = (0, "0", "false")  # 0 equals false
_NAMES = wire.Privacy.__struct_fields__
_values = attrgetter(*_NAMES)
_NOTHING = _values(wire.Privacy())


def signals(request: wire.Request) -> Signals:
    """The privacy signals of a request."""
    present: dict[str, list[Any]] = {}
    for place in _places(request):
        values = _values(place)
        if values != _NOTHING:
            for name, value in zip(_NAMES, values, strict=True):
                if value is not None and value != "":
                    present.setdefault(name, []).append(value)
    stricter = {name: _STRICTER[name](copies) for name, copies in present.items()}
    if request.regs is not None:
        stricter["dsa_required"] = _dsa_required(request.regs)
    if _is_in_gdpr_country(request):
        stricter["in_gdpr_country"] = True
    return Signals(**stricter)


def is_yes(value: Any) -> bool:
    """Whether a flag is set."""
    return value is not None and value != "" and value not in _NO


def _places(request: wire.Request) -> Iterable[wire.Privacy]:
    yield request
    if request.ext is not None:
        yield request.ext
    for place in (request.site, request.app, request.user, request.regs, request.device):
        if place is not None:
            yield place
            if place.ext is not None:
                yield place.ext


def _flag(copies: Sequence[Any]) -> bool:
    return any(map(is_yes, copies))


def _texts(copies: Sequence[Any]) -> list[str]:
    """The copies of a text, each once."""
    return list(dict.fromkeys(copy if isinstance(copy, str) else UNREADABLE for copy in copies))


def _text(copies: Sequence[Any]) -> str:
    texts = _texts(copies)
    return UNREADABLE if len(texts) > 1 else texts[0]


def _us_privacy(copies: Sequence[Any]) -> str:
    return min(_texts(copies), key=gpp.us_privacy_permits)  # False comes first


def _sections(copies: Sequence[Any]) -> tuple[int, ...]:
    """The numbers of the sections in lists; `gpp.UNKNOWN_SECTION` for an item that is no number and for a long list."""
    lists = (copy if isinstance(copy, list) else [copy] for copy in copies)
    items = (item for copy in lists for item in (copy if len(copy) <= gpp.MAX_SECTIONS else [gpp.UNKNOWN_SECTION]))
    return tuple(dict.fromkeys(_section(item) for item in items if item is not None))


def _section(item: Any) -> int:
    if isinstance(item, str) and len(item) <= 3 and item.isascii() and item.removeprefix("-").isdecimal():
        return int(item)
    return item if type(item) is int and abs(item) < 1000 else gpp.UNKNOWN_SECTION


def _dsa_required(regs: wire.Regs) -> int:
    copies = (regs, regs.ext) if regs.ext is not None else (regs,)
    return max((copy.dsa.dsarequired or 0) if copy.dsa is not None else 0 for copy in copies)


def _is_in_gdpr_country(request: wire.Request) -> bool:
    """Whether device or user are in a country of the GDPR."""
    return any(
        place is not None and place.geo is not None and alpha_3(place.geo.country or "") in GDPR
        for place in (request.device, request.user)
    )


# Signal -> the stricter of its copies.
_STRICTER: dict[str, Callable[[Sequence[Any]], Any]] = {
    **dict.fromkeys(("gdpr", "gpc", "coppa", "lmt", "dnt"), _flag),
    "consent": _text,
    "us_privacy": _us_privacy,
    "gpp": _text,
    "gpp_sid": _sections,
}
