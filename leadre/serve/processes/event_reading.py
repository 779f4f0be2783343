"""Reading an event from its URL or message: its token, price and value, or why it is refused. Pure.

The clearing price of a bid is a macro in its `burl` that the exchange fills in. Prebid fills none: such a bill costs
the signed price if its token has `bills_signed_price`. With `has_fixed_price` nothing else can be billed. A price that
cannot be billed does not use the event up, so that the true one still counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec

from leadre.errors import ExpiredError, ForgedError
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.outcomes import CONVERSION_US
from leadre.serve.events.tokens import Token, TokenKeys
from leadre.serve.ipc.messages import EventRequest
from leadre.serve.protocol import openrtb
from leadre.types import EventKind

REDIRECT_US = CONVERSION_US  # from the end of a click's token to the last redirect to its landing page
MAX_REASON = 9_999  # loss reasons of OpenRTB are below 500; an exchange may have its own above
MAX_DIGITS = 18  # of a value in nanos
AUDIT = "AUDIT"  # OpenRTB 2.6, section 4.4: in place of a price, it marks a notice for verification
_MACRO = re.compile(r"(\$|%24)(\{|%7B)AUCTION_PRICE(:B64)?(\}|%7D)", re.IGNORECASE)

Reason = Literal["forged", "late", "price", "audit"]


class Conversion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversion that an advertiser's server sends. ``event_id``: the advertiser's own, such as of an order."""

    click_id: str
    event_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    value_nanos: Annotated[int, msgspec.Meta(ge=0, le=10**18)] = 0


class Refusal(NamedTuple):
    """Why an event has no effect: the token is not ours or for another kind, it has ended, or the price is none."""

    reason: Reason
    status: int


def read(
    kind: EventKind,
    query: Mapping[str, str],
    keys: TokenKeys,
    catalogue: CatalogueSnapshot,
    now_us: int,
    *,
    post_view: bool = False,
) -> tuple[Token | None, EventRequest | Refusal]:
    """(token, message to the writer or a refusal) of an event. The token of a late click is returned too.

    ``post_view``: whether the token of an impression is one of a conversion.
    """
    text = query.get("t", "")
    token_kind = kind
    try:
        try:
            token = keys.check(text, kind, now_us, late_us=REDIRECT_US if kind == "click" else 0)
        except ForgedError:
            if kind != "conv" or not post_view:
                raise
            token_kind = "imp"
            token = keys.check(text, token_kind, now_us, late_us=CONVERSION_US)
    except ForgedError:
        return None, Refusal("forged", 403)
    except ExpiredError:
        return None, Refusal("late", 403)
    if now_us > token.ends_at_us(kind) and token_kind == kind:
        return token, Refusal("late", 403)
    price_nanos = 0
    if kind in ("win", "bill"):
        price = paid_nanos(query.get("price", ""), token)
        if kind == "bill" and isinstance(price, Refusal):
            return token, price
        price_nanos = 0 if isinstance(price, Refusal) else price
    is_notice = kind in ("win", "loss")
    reason = query.get("reason", "") if kind == "loss" else ""
    value = query.get("value_nanos", "") if kind == "conv" else ""
    return token, EventRequest(
        kind=kind,
        token=text,
        token_kind=token_kind,
        at_us=now_us,
        price_nanos=price_nanos,
        min_to_win_nanos=(openrtb.paid_nanos(query.get("min", "")) or 0) if is_notice else 0,
        loss_reason=int(reason) if _is_count(reason) and int(reason) <= MAX_REASON else 0,
        value_nanos=bounded_value_nanos(token, int(value) if _is_count(value) else 0, catalogue),
    )


def paid_nanos(text: str, token: Token) -> int | Refusal:
    """The price of a notice, in nanos of one impression: at most the signed price."""
    if text.startswith(AUDIT):
        return Refusal("audit", 204)
    if token.has_fixed_price or (token.bills_signed_price and (not text or _MACRO.fullmatch(text))):
        return token.price_cap_nanos
    nanos = openrtb.paid_nanos(text)
    return min(nanos, token.price_cap_nanos) if nanos else Refusal("price", 400)


def bounded_value_nanos(token: Token, value_nanos: int, catalogue: CatalogueSnapshot) -> int:
    """The value of a conversion, at most its campaign's `max_value_nanos`; 0 for an unknown campaign."""
    row = catalogue.row_of_campaign.get(token.campaign_id)
    return 0 if row is None else min(value_nanos, catalogue.campaigns[row].max_value_nanos)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS
