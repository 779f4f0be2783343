"""The store is read and written only with the purposes for it: calls of a spy, over the matrix of signals."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest

from leadre.serve.ipc.messages import GenerateReply

from ..alone import Alone, banner_request, urls_of
from ..conftest import make_ad, make_campaign
from ..protocol.consent_strings import OURS, encode

USER = "user-7"
PURPOSES = [frozenset(some) for n in range(6) for some in itertools.combinations((1, 2, 3, 4, 7), n)]
LIMITS = {
    "": {},
    "gpp": {"regs": {"gpp": "DBABMA~1"}},
    "gpp_sid": {"regs": {"ext": {"gpp_sid": [7]}}},
    "us_privacy": {"regs": {"ext": {"us_privacy": "1YYN"}}},
    "gpc": {"regs": {"ext": {"gpc": 1}}},
    "coppa": {"regs": {"coppa": 1}},
    "lmt": {"device": {"lmt": 1}},
    "dnt": {"device": {"dnt": 1}},
}
STRINGS = {  # TC strings: granted to the bidder, to another vendor, cut, with a restriction, absent
    "ours": lambda purposes: encode(purposes, (), {OURS}),
    "another's": lambda purposes: encode(purposes, (), {OURS + 1}),
    "cut": lambda purposes: encode(purposes, (), {OURS})[:-4],
    "restricted": lambda purposes: encode(purposes, (), {OURS}, restrictions=[(4, 0, {OURS})]),
    "absent": lambda purposes: "",
}


def granted(purposes, gdpr, limit, string, when_absent):
    """The purposes that a request permits, by a second implementation of the rules."""
    applies = gdpr == 1 if gdpr is not None else when_absent or string != "absent"
    allowed = frozenset({1, 2, 3, 4, 7})
    if applies:
        allowed = {"ours": purposes, "restricted": purposes - {4}}.get(string, frozenset())
    return allowed & {2} if limit else allowed


def request_of(purposes, gdpr, limit, string, in_ext):
    """The signals at their place of OpenRTB 2.6, or under ``ext``."""
    fields = {"user": {"id": USER}, "regs": {}, "device": {}}
    for name, values in LIMITS[limit].items():
        fields[name] = dict(values)
    if text := STRINGS[string](purposes):
        fields["user"] |= {"ext": {"consent": text}} if in_ext else {"consent": text}
    if gdpr is not None and in_ext:
        fields["regs"]["ext"] = fields["regs"].get("ext", {}) | {"gdpr": gdpr}
    elif gdpr is not None:
        fields["regs"]["gdpr"] = gdpr
    return banner_request(**fields)


@pytest.fixture
def alone(tmp_path):
    """A user with a profile and no list, a targeted segment and a capped ad: every reason to read or write a user."""
    with Alone(tmp_path / "state", vendor_id=OURS) as alone:
        alone.campaign_store.put_campaign(make_campaign("c-capped", bid_nanos=9_000_000, cap_per_day=100_000))
        alone.campaign_store.put_ad(make_ad("capped", campaign_id="c-capped"))
        alone.campaign_store.put_campaign(make_campaign("c-plain"))
        alone.campaign_store.put_ad(make_ad("plain", campaign_id="c-plain", object_id="o2"))
        targeting = make_campaign().targeting
        targeting = dataclasses.replace(targeting, segments=frozenset({"runner"}))
        alone.campaign_store.put_campaign(make_campaign("c-segment", targeting=targeting))
        alone.put_list("*", "capped", "plain")
        alone.put_profile(USER, "o1", segments=["runner"])
        alone.renew(object_ids=("o1", "o2"))

        async def generate(request):
            assert request.user_id == USER and request.recent
            return GenerateReply([0, 1], [-1.0, -2.0], True)

        alone.bidder.generate = generate
        yield alone


def touched(alone):
    """Calls of the store that name the user, since the last `touched`."""
    calls = Counter(name for name, about in alone.store.calls if getattr(about, "user_id", about) == USER)
    alone.store.calls.clear()
    return calls


CASES = list(itertools.product(PURPOSES, (None, 0, 1), LIMITS, ("ours", "another's")))
CASES += list(itertools.product(PURPOSES[-8:], (None, 0, 1), LIMITS, ("cut", "restricted", "absent")))


@pytest.mark.parametrize("when_absent", [False, True])
def test_user_is_read_and_counted_only_with_purposes_1_and_4(alone, when_absent):
    alone.bidder.settings = dataclasses.replace(alone.bidder.settings, gdpr_when_absent=when_absent)
    touched(alone)
    personal = 0
    for number, case in enumerate(CASES):
        allowed = granted(*case, when_absent)
        request = request_of(*case, number % 2)
        decision = alone.respond(request)
        calls = touched(alone)
        if {1, 4} <= allowed:
            assert set(calls) == {"read_list", "read_profile", "reserve"}, (case, calls)
            assert [rendered.bid.source for rendered in decision.rendered] == ["generated"], case
            personal += 1
        else:
            assert not calls, (case, calls)
            sources = ["contextual"] if 2 in allowed else []
            assert [rendered.bid.source for rendered in decision.rendered] == sources, case
        is_kept = {1, 4} <= allowed and bool(allowed & {3, 7})
        assert alone.record(request, decision).user_id == (USER if is_kept else ""), case
        assert USER not in "".join(rendered.adm + rendered.nurl + rendered.burl for rendered in decision.rendered)
    assert 100 < personal < len(CASES) / 2


def test_profile_is_written_only_with_purposes_1_3_and_4(alone):
    """A click on the ad of each request, through the writer."""
    before = len(alone.store.read_profile(USER).recent)
    written = 0
    cases = [(purposes, 1, "", "ours") for purposes in PURPOSES]
    cases += [(PURPOSES[-1], 0, limit, "ours") for limit in LIMITS]
    for number, case in enumerate(cases):
        allowed = granted(*case, False)
        decision = alone.respond(request_of(*case, number % 2))
        touched(alone)
        clicks = [("click", urls_of(rendered)["click"]) for rendered in decision.rendered]
        assert alone.post_events(*clicks) == ["new" if 7 in allowed else "known"] * len(clicks), case
        calls = touched(alone)
        if {1, 3, 4, 7} <= allowed:
            written += 1
            assert set(calls) == {"read_profile", "write_profiles"}, case
        else:
            assert not calls, (case, calls)
    assert len(alone.store.read_profile(USER).recent) == before + written and written > 1
