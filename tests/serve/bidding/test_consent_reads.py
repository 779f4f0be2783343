"""No history is read and none is written without its purpose: a spy on the store, over the matrix of signals."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest

from leadre.serve.ipc.messages import GenerateReply

from ..alone import Alone, asked, urls_of
from ..conftest import make_ad, make_campaign
from ..protocol.test_consent import OURS, encode

USER = "somebody"
PURPOSES = [frozenset(some) for n in range(6) for some in itertools.combinations((1, 2, 3, 4, 7), n)]
LIMITS = {
    "": {},
    "gpp": {"regs": {"gpp": "DBABMA~1"}},
    "gpp_sid": {"regs": {"ext": {"gpp_sid": [7]}}},
    "us_privacy": {"regs": {"ext": {"us_privacy": "1YNN"}}},
    "gpc": {"regs": {"ext": {"gpc": 1}}},
    "coppa": {"regs": {"coppa": 1}},
    "lmt": {"device": {"lmt": 1}},
    "dnt": {"device": {"dnt": 1}},
}
STRINGS = {  # what stands for the purposes: granted to us, to somebody else, unreadable, restricted, not there
    "ours": lambda purposes: encode(purposes, (), {OURS}),
    "another's": lambda purposes: encode(purposes, (), {OURS + 1}),
    "cut": lambda purposes: encode(purposes, (), {OURS})[:-4],
    "restricted": lambda purposes: encode(purposes, (), {OURS}, restrictions=[(4, 0, {OURS})]),
    "absent": lambda purposes: "",
}


def granted(purposes, gdpr, limit, string, when_absent):
    """What the rules say, told once more: purposes that may be acted on."""
    applies = gdpr == 1 if gdpr is not None else when_absent or string != "absent"
    allowed = frozenset({1, 2, 3, 4, 7})
    if applies:
        allowed = {"ours": purposes, "restricted": purposes - {4}}.get(string, frozenset())
    return allowed & {2} if limit else allowed


def request_of(purposes, gdpr, limit, string, place):
    """The signals where OpenRTB 2.6 has them, or (``place`` 1) under ``ext``."""
    fields = {"user": {"id": USER}, "regs": {}, "device": {}}
    for name, values in LIMITS[limit].items():
        fields[name] = dict(values)
    if text := STRINGS[string](purposes):
        fields["user"] |= {"ext": {"consent": text}} if place else {"consent": text}
    if gdpr is not None and place:
        fields["regs"]["ext"] = fields["regs"].get("ext", {}) | {"gdpr": gdpr}
    elif gdpr is not None:
        fields["regs"]["gdpr"] = gdpr
    return asked(**fields)


@pytest.fixture
def alone(tmp_path):
    """Its user has a profile and no list, an ad asks for a segment, one has a cap: all that reads or writes a user."""
    with Alone(tmp_path / "state", vendor_id=OURS) as made:
        made.book.put_campaign(make_campaign("c-capped", bid_nanos=9_000_000, cap_per_day=100_000))
        made.book.put_ad(make_ad("capped", campaign_id="c-capped"))
        made.book.put_campaign(make_campaign("c-plain"))
        made.book.put_ad(make_ad("plain", campaign_id="c-plain", object_id="o2"))
        wanted = make_campaign().targeting
        wanted = dataclasses.replace(wanted, segments=frozenset({"runner"}))
        made.book.put_campaign(make_campaign("c-segment", targeting=wanted))
        made.remember("*", "capped", "plain")
        made.has_done(USER, "o1", segments=["runner"])
        made.renew(object_ids=("o1", "o2"))

        async def generate(asked):
            assert asked.user_id == USER and asked.recent
            return GenerateReply([0, 1], [-1.0, -2.0], True)

        made.bidder.generate = generate
        yield made


def touched(alone):
    """Calls of the store that name the user, since the last time."""
    calls = Counter(name for name, about in alone.store.asked if getattr(about, "user_id", about) == USER)
    alone.store.asked.clear()
    return calls


CASES = list(itertools.product(PURPOSES, (None, 0, 1), LIMITS, ("ours", "another's")))
CASES += list(itertools.product(PURPOSES[-8:], (None, 0, 1), LIMITS, ("cut", "restricted", "absent")))


@pytest.mark.parametrize("when_absent", [False, True])
def test_a_user_is_read_and_counted_with_purposes_1_and_4_alone(alone, when_absent):
    alone.bidder.settings = dataclasses.replace(alone.bidder.settings, gdpr_when_absent=when_absent)
    touched(alone)
    personal = 0
    for number, case in enumerate(CASES):
        allowed = granted(*case, when_absent)
        request = request_of(*case, number % 2)
        answer = alone.respond(request)
        calls = touched(alone)
        if {1, 4} <= allowed:
            assert set(calls) == {"read_list", "read_profile", "reserve"}, (case, calls)
            assert [each.bid.source for each in answer.rendered] == ["generated"], case
            personal += 1
        else:
            assert not calls, (case, calls)
            wanted = ["contextual"] if 2 in allowed else []
            assert [each.bid.source for each in answer.rendered] == wanted, case
        is_kept = {1, 4} <= allowed and bool(allowed & {3, 7})
        assert alone.record(request, answer).user_id == (USER if is_kept else ""), case
        assert USER not in "".join(each.adm + each.nurl + each.burl for each in answer.rendered)
    assert 100 < personal < len(CASES) / 2


def test_a_profile_is_written_with_purposes_1_3_and_4_alone(alone):
    """A click on the ad of each request, through the writer."""
    before = len(alone.store.read_profile(USER).recent)
    written = 0
    cases = [(purposes, 1, "", "ours") for purposes in PURPOSES]
    cases += [(PURPOSES[-1], 0, limit, "ours") for limit in LIMITS]
    for number, case in enumerate(cases):
        allowed = granted(*case, False)
        answer = alone.respond(request_of(*case, number % 2))
        touched(alone)
        clicks = [("click", urls_of(each)["click"]) for each in answer.rendered]
        assert alone.happened(*clicks) == ["new" if 7 in allowed else "known"] * len(clicks), case
        calls = touched(alone)
        if {1, 3, 4, 7} <= allowed:
            written += 1
            assert set(calls) == {"read_profile", "write_profiles"}, case
        else:
            assert not calls, (case, calls)
    assert len(alone.store.read_profile(USER).recent) == before + written and written > 1
