"""Log records of requests: they restore what decided, omit what may not be kept, and read the verdicts of old logs."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from leadre.errors import InputError
from leadre.serve.bidding import record
from leadre.serve.bidding.context import BidDecision, Candidates, ImpState
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.events import records
from leadre.serve.events.records import RequestRecord
from leadre.types import Impression, Permissions, Request, Signals, Verdict

REQUEST = Request(
    request_id="theirs",
    imps=(
        Impression(imp_id="1", sizes=((300, 250), (728, 90)), floor_nanos=7, floor_currency="EUR", placement_id="top"),
        Impression(imp_id="2", sizes=(), is_secure=True, blocked_attributes=frozenset({3, 4})),
    ),
    user_id="user-7",
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


def logged(*, permissions=ALL, candidates=None, imps=()):
    """The record of a decision, after one round through the log's format."""
    decision = BidDecision(
        request_id="ours", permissions=permissions, user_id="user-7", candidates=candidates, imps=list(imps)
    )
    written = record.record(REQUEST, decision, 5, "abc", is_degraded=False)
    return records.decode(records.encode(written))


def test_record_restores_the_deciding_fields_of_the_request():
    request_record = logged()
    omitted = {"tmax_ms": 0, "page": "", "language": "", "ip": ""}
    assert record.request_of(request_record) == replace(REQUEST, **omitted)
    assert not any(text in records.encode(request_record) for text in (b"private-page", b"192.0.2"))


def test_record_without_permission_keeps_only_that_a_user_was_known():
    request_record = logged(permissions=Permissions(store_id=True, contextual=True, personalise=True))
    assert request_record.is_known and not request_record.user_id
    assert not any(text in records.encode(request_record) for text in (b"user-7", b"secret-segment"))
    assert b"secret-segment" not in records.encode(records.without_user(logged()))


def test_record_keeps_the_first_20_candidates_and_all_considered_ones():
    candidates = Candidates("stored", [f"a{row:02}" for row in range(40)], np.arange(40), -np.arange(40.0))
    code_K = np.full(40, Verdict.NOT_SELECTED.code, np.uint8)
    code_K[39] = Verdict.BID.code
    state = ImpState(REQUEST.imps[0], verdict_K=code_K, considered=[39])
    request_record = logged(candidates=candidates, imps=[state])
    ad_ids = [candidate.ad_id for candidate in request_record.candidates]
    assert ad_ids == [f"a{number:02}" for number in [*range(20), 39]]
    assert request_record.verdicts == {"1": (Verdict.NOT_SELECTED,) * 20 + (Verdict.BID,)}


OLD_WORDS = {
    "bid": Verdict.BID,
    "not drawn": Verdict.NOT_SELECTED,
    "ineligible": Verdict.INELIGIBLE,
    "shown in another place": Verdict.DUPLICATE,
    "currency of the answer": Verdict.RESPONSE_CURRENCY,
    "floor in another currency": Verdict.FLOOR_CURRENCY,
    "below floor": Verdict.BELOW_FLOOR,
    "cap cannot be counted": Verdict.UNKNOWN_USER_CAP,
    "cap": Verdict.FREQUENCY_CAP,
    "budget": Verdict.NO_BUDGET,
    "": Verdict.NOT_EVALUATED,
}


def test_old_verdicts_in_a_log_are_read_and_written_in_the_new_words():
    old = {"type": "answered", "request_id": "r", "at_us": 1, "verdicts": {"1": list(OLD_WORDS)}}
    request_record = records.decode(msgspec.msgpack.encode(old))
    assert isinstance(request_record, RequestRecord)
    assert request_record.verdicts == {"1": tuple(OLD_WORDS.values())}
    assert set(OLD_WORDS.values()) == set(Verdict) - {Verdict.OUTRANKED, Verdict.OPEN_BIDS, Verdict.PACED}, (
        "an old log has no other verdict"
    )
    assert records.decode(records.encode(request_record)) == request_record
    words = msgspec.to_builtins(request_record)["verdicts"]["1"]
    assert words == tuple(verdict.value for verdict in OLD_WORDS.values())


def test_unknown_verdict_in_a_log_is_an_error():
    record_of_tomorrow = {"type": "answered", "request_id": "r", "at_us": 1, "verdicts": {"1": ["unsafe"]}}
    with pytest.raises(msgspec.ValidationError, match="unsafe"):
        records.decode(msgspec.msgpack.encode(record_of_tomorrow))


def test_draws_are_uniform_independent_and_reproducible(tmp_path):
    first = ExplorationDraws.open(tmp_path / "draws.key")
    reopened = ExplorationDraws.open(tmp_path / "draws.key")
    other = ExplorationDraws.open(tmp_path / "other.key")
    pairs = np.array([first.pair(f"r{n}", "1") for n in range(4000)])
    assert pairs.min() >= 0 and pairs.max() < 1
    counts, *_ = np.histogram2d(*pairs.T, bins=4, range=[[0, 1], [0, 1]])
    assert counts.min() > 180 and counts.max() < 320  # 250 each, within four deviations
    assert [first.pair("r", imp_id) for imp_id in "12"] == [reopened.pair("r", imp_id) for imp_id in "12"]
    assert len({draws.pair("r", imp_id) for draws in (first, other) for imp_id in "12"}) == 4


@pytest.mark.parametrize("content", ["", "00", "x" * 64])
def test_damaged_key_file_is_an_error_with_its_path(tmp_path, content):
    (tmp_path / "draws.key").write_text(content)
    with pytest.raises(InputError, match=r"draws\.key: holds no key of 32 bytes in hex; restore the file"):
        ExplorationDraws.open(tmp_path / "draws.key")
