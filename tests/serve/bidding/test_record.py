"""What the log keeps of a request: enough to ask again, nothing of its user that may not be kept; and what is drawn."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from leadre.errors import InputError
from leadre.serve.bidding import record
from leadre.serve.bidding.context import BidDecision, Candidates, ImpState
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.catalogue.eligibility import load
from leadre.serve.events.records import RequestRecord, without_user
from leadre.types import Impression, Permissions, Request, Signals

REQUEST = Request(
    request_id="theirs",
    imps=(
        Impression(imp_id="1", sizes=((300, 250), (728, 90)), floor_nanos=7, floor_currency="EUR", placement_id="top"),
        Impression(imp_id="2", sizes=(), is_secure=True, blocked_attributes=frozenset({3, 4})),
    ),
    user_id="who-asked",
    signals=Signals(gdpr=True, consent="CPxyz", gpp_sid=(2, 6), dsa_required=1),
    tmax_ms=120,
    currencies=("EUR", "USD"),
    site="news.example",
    page="https://news.example/private-page",
    categories=("IAB1",),
    segments=("secret-segment",),
    country="DEU",
    region="BE",
    language="de",
    device_type=4,
    ip="192.0.2.0",
    blocked_categories=frozenset({"IAB7"}),
    blocked_domains=frozenset({"rival.example"}),
    blocked_seats=frozenset({"other"}),
    has_deals_only=True,
    is_test=True,
)
ALL = Permissions(store_id=True, contextual=True, add_to_profile=True, personalise=True, measure=True)


def kept(book, *, permitted=ALL, candidates=None, places=()):
    answer = BidDecision(
        request_id="ours", permitted=permitted, user_id="who-asked", candidates=candidates, places=list(places)
    )
    made = record.record(REQUEST, answer, 5, book, "abc", is_degraded=False)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=RequestRecord)


@pytest.fixture
def empty(reader):
    return load(reader)


def test_what_decides_comes_back_and_the_rest_was_never_kept(empty):
    made = kept(empty)
    gone = {"tmax_ms": 0, "page": "", "language": "", "ip": ""}
    assert record.request_of(made) == replace(REQUEST, **gone)
    assert not any(sign in msgspec.msgpack.encode(made) for sign in (b"private-page", b"192.0.2"))


def test_without_permission_nothing_of_the_user_is_kept_but_that_there_was_one(empty):
    made = kept(empty, permitted=Permissions(store_id=True, contextual=True, personalise=True))
    assert made.is_known and not made.user_id
    assert not any(sign in msgspec.msgpack.encode(made) for sign in (b"who-asked", b"secret-segment"))
    assert b"secret-segment" not in msgspec.msgpack.encode(without_user(kept(empty)))


def test_whatever_was_considered_is_kept_however_far_behind(book, reader, campaign, ad):
    book.put_campaign(campaign())
    for number in range(40):
        book.put_ad(ad(f"a{number:02}"))
    found = Candidates("stored", np.arange(40), -np.arange(40.0))
    place = ImpState(REQUEST.imps[0], np.ones(40, np.bool_), verdicts={39: "bid"}, considered=[39])
    made = kept(load(reader), candidates=found, places=[place])
    assert [one.ad_id for one in made.candidates] == [f"a{number:02}" for number in [*range(20), 39]]
    assert made.verdicts == {"1": ("",) * 20 + ("bid",)}


def test_draws_are_even_independent_and_the_same_again(tmp_path):
    first, again = (ExplorationDraws.open(tmp_path / "draws.key") for _ in range(2))
    other = ExplorationDraws.open(tmp_path / "other.key")
    pairs = np.array([first.pair(f"r{n}", "1") for n in range(4000)])
    assert pairs.min() >= 0 and pairs.max() < 1
    counts, *_ = np.histogram2d(*pairs.T, bins=4, range=[[0, 1], [0, 1]])
    assert counts.min() > 180 and counts.max() < 320  # 250 each, give or take four deviations
    assert [first.pair("r", place) for place in "12"] == [again.pair("r", place) for place in "12"]
    assert len({draws.pair("r", place) for draws in (first, other) for place in "12"}) == 4


@pytest.mark.parametrize("content", ["", "00", "x" * 64])
def test_a_damaged_key_is_named(tmp_path, content):
    (tmp_path / "draws.key").write_text(content)
    with pytest.raises(InputError, match=r"draws\.key: wants a key of 32 bytes in hex; restore the file"):
        ExplorationDraws.open(tmp_path / "draws.key")
