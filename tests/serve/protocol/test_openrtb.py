"""Bytes to a Request and bids to bytes: golden requests, money, macros, and bids that a caller would reject."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.errors import BadRequest
from leadre.serve.protocol import openrtb
from leadre.serve.protocol.openrtb import MAX_NANOS, NoBid, Rendered, read
from leadre.types import Bid, Request, Signals

GOLDEN = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[2] / "golden/openrtb").glob("*.json"))
}
BANNER = {"id": "1", "banner": {"w": 300, "h": 250}}


def parsed(**fields):
    return read(json.dumps({"id": "r", "imp": [BANNER]} | fields).encode())


def imp(**fields):
    return parsed(imp=[BANNER | fields]).imps[0]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    golden = GOLDEN[name]
    body = json.dumps(golden["request"]).encode()
    if "bad_field" in golden:
        with pytest.raises(BadRequest) as caught:
            read(body)
        assert caught.value.field == golden["bad_field"]
        return
    request = read(body)
    assert request == msgspec.convert(golden["expected"], Request)
    status, answer = openrtb.no_bid(request, NoBid.NO_CANDIDATE)
    assert (status, json.loads(answer) if answer else None) == (golden["no_bid"]["status"], golden["no_bid"]["body"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"null", "body"),
        (b'{"id": "r", "imp": [', "body"),
        (b'{"id": "\xff", "imp": []}', "body"),
        (b'{"id": "r", "imp": [], "x": ' + b"[" * 100_000, "body"),
        (b'{"id": "r", "imp": [], "x": ' + b'{"x":' * 40_000, "body"),
        (b'{"imp": [{"id": "1"}]}', "id"),
        (b'{"id": 7, "imp": [{"id": "1"}]}', "id"),
        (b'{"id": "", "imp": [{"id": "1"}]}', "id"),
        (b'{"id": "r"}', "imp"),
        (b'{"id": "r", "imp": []}', "imp"),
        (b'{"id": "r", "imp": [{}]}', "imp[0].id"),
        (b'{"id": "r", "imp": [{"id": ""}]}', "imp[0].id"),
        (b'{"id": "r", "imp": [{"id": "1"}, {"id": "1"}]}', "imp[1].id"),
        (b'{"id": "r", "imp": [{"id": "1", "bidfloor": 1e999}]}', "imp[0].bidfloor"),
        (b'{"id": "r", "imp": [{"id": "1"}], "tmax": "soon"}', "tmax"),
        (b'{"id": "r", "imp": [{"id": "1"}], "tmax": 99999999999}', "tmax"),
        (
            b'{"id": "r", "imp": [{"id": "1"}], "regs": {"ext": {"dsa": {"dsarequired": "yes"}}}}',
            "regs.ext.dsa.dsarequired",
        ),
        (b'{"id": "r", "imp": [{"id": "1"}], "badv": "a.example"}', "badv"),
    ],
)
def test_bad_request_names_the_field(body, field):
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_unknown_fields_and_values_are_ignored():
    request = parsed(
        imp=[BANNER | {"secure": 7, "banner": {"w": 1, "h": 2, "btype": [99], "battr": [500]}, "ext": {"x": [1]}}],
        regs={"ext": {"a": 1}},
        ext="not even an object",
        device={"devicetype": 99, "ip": "somewhere"},
    )
    assert request.imps[0].blocked_attributes == {500} and not request.imps[0].is_secure
    assert request.signals == Signals()
    assert (request.device_type, request.ip) == (99, "")


def test_null_is_absent():
    names = [*msgspec.structs.asdict(openrtb.wire.Request(id="r", imp=[]))]
    request = parsed(**{name: None for name in names if name not in ("id", "imp")})
    assert request == parsed()


def test_only_the_first_hundred_imps_are_read():
    assert len(parsed(imp=[BANNER | {"id": str(n)} for n in range(300)]).imps) == openrtb.MAX_ITEMS == 100


@pytest.mark.parametrize(
    ("user", "user_id"),
    [
        ({"buyeruid": "b", "eids": [{"source": "s", "uids": [{"id": "e"}]}], "id": "u"}, "b"),
        ({"buyeruid": "", "eids": [{"source": "s", "uids": [{"id": "e"}]}], "id": "u"}, "s:e"),
        ({"ext": {"eids": [{"source": "s", "uids": [{}, {"id": "x"}]}]}, "id": "u"}, "s:x"),
        ({"eids": [{"source": "a", "uids": []}], "id": "u"}, "u"),
        ({}, ""),
    ],
)
def test_user_id_is_the_most_specific_one(user, user_id):
    assert parsed(user=user).user_id == user_id


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("203.0.113.77", "203.0.113.0"),
        ("2001:db8:85a3:8d3:1319:8a2e:370:7348", "2001:db8:85a3::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:203.0.113.77", "203.0.113.0"),
        ("203.0.113.0/24", ""),
        ("203.0.113.777", ""),
    ],
)
def test_address_is_truncated(address, kept):
    assert openrtb.truncated(address) == kept


# Money


@pytest.mark.parametrize(
    ("cpm", "up", "down"),
    [
        (0.0, 0, 0),
        (1.234567, 1_234_567, 1_234_567),
        (2.000001, 2_000_001, 2_000_001),  # times 1e6 in floats it is above that
        (1.1, 1_100_000, 1_100_000),
        (0.0000001, 1, 0),
        (5e-324, 1, 0),
        (0.1 + 0.2, 300_001, 300_000),
        (1e300, MAX_NANOS, MAX_NANOS),
    ],
)
def test_floors_go_up_and_prices_down(cpm, up, down):
    assert openrtb.nanos(cpm, up=True) == up
    assert openrtb.nanos(cpm, up=False) == down
    assert imp(bidfloor=cpm).floor_nanos == up


def test_a_floor_below_zero_is_none():
    assert imp(bidfloor=-1).floor_nanos == imp(bidfloor=-1e300).floor_nanos == imp().floor_nanos == 0


@given(st.integers(0, 10**15))
def test_written_price_reads_as_the_same_nanos(price_nanos):
    answer = written([rendered(price_nanos=price_nanos + 1)])
    cpm = answer["seatbid"][0]["bid"][0]["price"]
    assert openrtb.nanos(cpm, up=False) == openrtb.nanos(cpm, up=True) == price_nanos + 1


@given(st.decimals(0, 10**6, places=9))
def test_a_decimal_is_rounded_by_less_than_one(cpm):
    cpm = Decimal(repr(float(cpm)))
    down = openrtb.nanos(float(cpm), up=False)
    up = openrtb.nanos(float(cpm), up=True)
    assert down <= cpm * 1_000_000 <= up and up - down <= 1


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("1.234567", 1_234_567),
        ("0.5", 500_000),
        ("2", 2_000_000),
        ("0.0000019", 1),
        ("5.0E-4", 500),
        ("0", 0),
        ("9e99", MAX_NANOS),
        ("AUDIT", None),
        ("${AUCTION_PRICE}", None),
        ("", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e999999", None),
        ("0.000001" + 24 * "9", 1),  # every digit counts, and parts of a nano are not billed
        ("999999999999." + 30 * "9", 999_999_999_999_999_999),
        ("1_000", None),
        ("\u0661", None),  # an Arabic 1
        ("9" * 10_000, None),
    ],
)
def test_paid_price_is_parsed_or_none(text, paid):
    assert openrtb.paid_nanos(text) == paid


RATES = {("EUR", "USD"): Fraction("1.1"), ("JPY", "USD"): Fraction("0.0067")}


def test_currency_is_converted_if_equal_or_in_the_table():
    assert openrtb.convert(7, "USD", "USD", up=False) == 7
    assert openrtb.convert(7, "EUR", "USD", up=False) is None
    assert openrtb.convert(7, "USD", "EUR", RATES, up=False) is None
    assert openrtb.convert(7, "EUR", "USD", RATES, up=False) == 7  # 7.7
    assert openrtb.convert(7, "EUR", "USD", RATES, up=True) == 8
    assert openrtb.convert(10, "EUR", "USD", RATES, up=True) == 11


# Responses


def rendered(*, adm="<a></a>", nurl="", burl="", dsa=None, **bid):
    fields = {
        "bid_id": "b1",
        "imp_id": "1",
        "ad_id": "ad-1",
        "campaign_id": "c-1",
        "advertiser_id": "adv-1",
        "price_nanos": 1_500_000,
        "currency": "USD",
        "size": (300, 250),
        "source": "stored",
        "propensity": 0.5,
    }
    return Rendered(bid=Bid(**(fields | bid)), adm=adm, nurl=nurl, burl=burl, dsa=dsa)


def written(bids, request=None, **settings):
    settings = {"seat": "leadre"} | settings
    return json.loads(openrtb.write(request or parsed(), bids, **settings))


def test_a_response_in_full():
    bid = msgspec.structs.replace(
        rendered(nurl="https://ads.example/e/win", burl="https://ads.example/e/bill", dsa={"behalf": "Shop"}),
        adomain=("shop.example",),
        iab_categories=("IAB8-1",),
        attributes=frozenset({4, 1}),
    )
    assert written([bid], seat="mine") == {
        "id": "r",
        "cur": "USD",
        "seatbid": [
            {
                "seat": "mine",
                "bid": [
                    {
                        "id": "b1",
                        "impid": "1",
                        "price": 1.5,
                        "crid": "ad-1",
                        "adid": "ad-1",
                        "cid": "c-1",
                        "adm": "<a></a>",
                        "nurl": "https://ads.example/e/win",
                        "burl": "https://ads.example/e/bill",
                        "adomain": ["shop.example"],
                        "cat": ["IAB8-1"],
                        "attr": [1, 4],
                        "mtype": 1,
                        "w": 300,
                        "h": 250,
                        "ext": {"dsa": {"behalf": "Shop"}},
                    }
                ],
            }
        ],
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"bid_id": ""},
        {"imp_id": ""},
        {"imp_id": "not in the request"},
        {"ad_id": ""},
        {"price_nanos": 0},
        {"price_nanos": -1},
        {"currency": "EUR"},
    ],
)
def test_a_bid_that_would_be_rejected_is_not_sent(wrong):
    assert written([rendered(**wrong)]) == {"id": "r"}
    assert len(written([rendered(**wrong), rendered()])["seatbid"][0]["bid"]) == 1


def test_bid_without_a_required_dsa_object_is_not_sent():
    request = parsed(regs={"ext": {"dsa": {"dsarequired": 2}}})
    assert written([rendered()], request) == {"id": "r"}
    assert written([rendered(dsa={})], request)["seatbid"]
    assert written([rendered()], parsed(regs={"ext": {"dsa": {"dsarequired": 1}}}))["seatbid"]


def test_response_currency_is_that_of_most_bids():
    request = parsed(cur=["GBP", "EUR", "USD"])
    bids = [rendered(currency="EUR"), rendered(bid_id="b2", currency="JPY"), rendered(bid_id="b3", price_nanos=3)]
    assert written(bids, request)["cur"] == "EUR"  # one each: the order of the request decides
    answer = written(bids, request, rates=RATES)
    assert answer["cur"] == "USD"
    assert [bid["price"] for bid in answer["seatbid"][0]["bid"]] == [1.65, 0.01005, 0.000003]
    assert written([rendered(currency="JPY")], rates={("JPY", "USD"): Fraction(1, 10**7)}) == {"id": "r"}  # rounds to 0


def test_only_tests_and_debugging_get_the_no_bid_reason():
    assert openrtb.no_bid(parsed(), NoBid.PACED) == (204, b"")
    assert openrtb.no_bid(parsed(test=1), NoBid.PACED) == (200, b'{"id":"r","nbr":502}')
    assert openrtb.no_bid(parsed(), NoBid.DEGRADED, is_debug=True) == (200, b'{"id":"r","nbr":506}')


def test_macros_are_filled_if_the_value_is_known():
    values = {"AUCTION_ID": 'a&b"', "AUCTION_PRICE": "1.5", "AUCTION_LOSS": "", "AUCTION_MBR": "${AUCTION_ID}"}
    assert openrtb.substitute("?p=${AUCTION_PRICE}&i=${AUCTION_ID}", values) == "?p=1.5&i=a%26b%22"
    assert openrtb.substitute("${AUCTION_PRICE:B64}", values) == "MS41"
    assert openrtb.substitute("l=${AUCTION_LOSS}&c=${AUCTION_CURRENCY}", values) == "l=&c=${AUCTION_CURRENCY}"
    assert openrtb.substitute("${AUCTION_MBR}", values) == "%24%7BAUCTION_ID%7D"  # not filled twice
    assert openrtb.substitute("${AUCTION_PRICE:B32} ${auction_id} $AUCTION_ID", values).count("$") == 3


def test_macros_are_filled_for_a_page_and_left_to_an_exchange():
    texts = {name: name + "?${AUCTION_PRICE}&${AUCTION_CURRENCY}&${AUCTION_ID}" for name in ("adm", "nurl", "burl")}
    bid = rendered(**texts, price_nanos=1)
    (exchange,) = written([bid])["seatbid"][0]["bid"]
    (page,) = written([bid], fills_macros=True)["seatbid"][0]["bid"]
    for name, text in texts.items():
        assert exchange[name] == text
        assert page[name] == name + "?0.000001&USD&r"


def test_source_of_the_ad_is_named_to_a_page_and_not_to_an_exchange():
    (exchange,) = written([rendered(source="stored")])["seatbid"][0]["bid"]
    (page,) = written([rendered(source="stored")], fills_macros=True)["seatbid"][0]["bid"]
    assert "ext" not in exchange
    assert page["ext"] == {"prebid": {"meta": {"leadre": {"source": "stored"}}}}
    assert openrtb.paid_nanos("0.000001") == 1
