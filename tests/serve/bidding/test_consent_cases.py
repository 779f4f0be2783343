"""Requests as exchanges and pages send them: who is answered personally, who by context, who not at all."""

from __future__ import annotations

import pytest

from leadre.serve.protocol.openrtb import NoBid

from ..alone import NOON_US, Alone, banner_request
from ..conftest import make_ad, make_campaign
from ..protocol.consent_strings import MAY_2026_S, OURS, encode, gpp_string, us_section

AUGUST_2025_S = 1_755_216_000
EVERY = {1, 2, 3, 4, 7}
PLACEHOLDERS = ("id5-sync.com:0", "0", "null", "00000000-0000-0000-0000-000000000000")
WHOLE = encode(EVERY, (), {OURS}, created_s=AUGUST_2025_S)
U1 = {"id": "u1"}


def under_gdpr(consent, **regs):
    return {"user": U1 | {"consent": consent}, "regs": {"gdpr": 1} | regs}


def eids(*pairs):
    return {"eids": [{"source": source, "uids": [{"id": uid, "atype": 1}]} for source, uid in pairs]}


MINE = ("mine", "stored")
STRANGER = ("stranger", "contextual")
NONE = None
CASES = {
    "a string of May 2026 did not disclose us": (
        under_gdpr(encode(EVERY, (), {OURS}, created_s=MAY_2026_S, disclosed={1, 2, OURS + 1})),
        NONE,
    ),
    "a string of May 2026 lacks the segment": (under_gdpr(encode(EVERY, (), {OURS}, created_s=MAY_2026_S)), NONE),
    "a string is not service-specific": (under_gdpr(encode(EVERY, (), {OURS}, is_service_specific=False)), NONE),
    "a string of 2025 lacks the segment": (under_gdpr(WHOLE), MINE),
    "a string of May 2026 disclosed us": (
        under_gdpr(encode(EVERY, (), {OURS}, created_s=MAY_2026_S, disclosed={OURS})),
        MINE,
    ),
    "restrictions of purposes 2 and 4 to consent": (
        under_gdpr(encode(EVERY, (), {OURS}, restrictions=[(2, 1, {OURS}), (4, 1, {OURS})])),
        MINE,
    ),
    "padded string": (under_gdpr(WHOLE + "=="), NONE),
    "string of version 1": (under_gdpr("BONV8oqONXwgmADACHENAO7pqzAEBAAAAAgAAAAA"), NONE),
    "GPP section 2 repeats the TC string": (under_gdpr(WHOLE, gpp=gpp_string({2: WHOLE}), gpp_sid=[2]), MINE),
    "GPP as a page without a country sends it": (
        {"user": U1, "regs": {"gpp": gpp_string({7: us_section(7, 1)}), "gpp_sid": [7]}},
        MINE,
    ),
    "US opt-out": ({"user": U1, "regs": {"ext": {"us_privacy": "1YYN"}}}, STRANGER),
    "US privacy does not apply": ({"user": U1, "regs": {"us_privacy": "1---"}}, MINE),
    "regs.ext is empty": ({"user": U1, "regs": {"ext": {}}}, MINE),
    "an ID provider says 0": ({"user": eids(("id5-sync.com", "0"))}, STRANGER),
    "the exchange says null": ({"user": {"id": "null", "buyeruid": "0"}}, STRANGER),
    "a device without an advertising ID": ({"device": {"ifa": PLACEHOLDERS[-1]}}, STRANGER),
    "the known ID of two is the second": ({"user": eids(("uidapi.com", "U"), ("pubcid.org", "P"))}, MINE),
    "the known ID of two is the last": ({"user": eids(("a.example", "U"), ("pubcid.org", "P"))}, MINE),
    "the advertising ID of the device is known": ({"device": {"ifa": "IFA-1"}}, MINE),
    "and the device limits tracking": ({"device": {"ifa": "IFA-1", "lmt": "1"}}, STRANGER),
    "a German device without a GDPR signal": ({"user": U1, "device": {"geo": {"country": "DE"}}}, NONE),
    "a user of the United States": ({"user": U1, "device": {"geo": {"country": "USA"}}}, MINE),
    "DSA required": ({"regs": {"ext": {"dsa": {"dsarequired": 2}}}}, NONE),
    "the user is called *": ({"user": {"id": "*"}}, STRANGER),
}


@pytest.fixture
def alone(tmp_path):
    with Alone(tmp_path / "state", vendor_id=OURS) as alone:
        for name in ("mine", "stranger"):
            alone.campaign_store.put_campaign(make_campaign(f"c-{name}"))
            alone.campaign_store.put_ad(make_ad(name, campaign_id=f"c-{name}"))
        alone.put_list("*", "stranger")
        for user_id in ("u1", "pubcid.org:P", "IFA-1", *PLACEHOLDERS):
            alone.put_list(user_id, "mine")
        alone.renew()
        alone.clock.wall_us = NOON_US + 200 * 86_400_000_000
        yield alone


@pytest.mark.parametrize(("fields", "expected"), CASES.values(), ids=CASES)
def test_request_is_answered_as_consent_and_ids_allow(alone, fields, expected):
    decision = alone.bid(**fields)
    assert [(rendered.bid.ad_id, rendered.bid.source) for rendered in decision.rendered] == (
        [expected] if expected else []
    )
    assert (decision.reason is NoBid.NO_CONSENT) == (expected is NONE)
    assert bool(decision.user_id) == (expected == MINE)


def test_first_known_id_is_the_user_else_the_first_of_the_order(alone):
    def user(**fields):
        return alone.bid(user=fields, device={"ifa": "IFA-1"}).user_id

    both = eids(("uidapi.com", "U"), ("pubcid.org", "P"))["eids"]
    assert user(eids=both) == user(eids=both[::-1]) == "pubcid.org:P"
    assert user(eids=both, buyeruid="new") == "pubcid.org:P" and user(buyeruid="u1", eids=both) == "u1"
    assert user(id="new") == "IFA-1"
    unknown = eids(("z.example", "Z"), ("a.example", "A"))
    assert alone.bid(user=unknown).user_id == "a.example:A"
    assert alone.bid(user=unknown | {"id": "new", "buyeruid": "b"}).user_id == "b"
    alone.put_profile("z.example:Z", "o1")
    assert alone.bid(user=unknown | {"id": "new", "buyeruid": "b"}).user_id == "z.example:Z"


def test_cap_of_a_user_holds_for_any_order_of_the_ids(alone):
    alone.campaign_store.put_campaign(make_campaign("c-mine", cap_per_day=2))
    alone.renew()
    both = eids(("uidapi.com", "U"), ("pubcid.org", "P"))["eids"]
    bids = [len(alone.bid(user={"eids": order}).rendered) for order in (both, both[::-1], both, both[::-1])]
    assert bids == [1, 1, 0, 0]


def test_record_names_no_id_but_the_one_that_was_used(alone):
    request = banner_request(user=eids(("uidapi.com", "U"), ("pubcid.org", "P")), device={"ifa": "IFA-1"})
    record = alone.record(request, alone.respond(request))
    assert record.user_id == "pubcid.org:P" and "IFA-1" not in str(record) and "uidapi" not in str(record)
