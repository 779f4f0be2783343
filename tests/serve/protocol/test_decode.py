"""Values of a wrong type: read as meant, left out where they only describe, refused where they restrict bids."""

from __future__ import annotations

import json

import pytest

from leadre.errors import BadRequest
from leadre.serve.protocol import openrtb
from leadre.serve.protocol.decode import MAX_LEFT_OUT, MAX_ODD_BYTES, known_fields
from leadre.serve.protocol.openrtb import read
from leadre.types import Signals

BANNER = {"id": "1", "banner": {"w": 300, "h": 250}}
USUAL = {"id": "r1", "imp": [BANNER], "cur": ["USD"], "site": {"domain": "news.example"}}


def parsed(**fields):
    return read(json.dumps(USUAL | fields).encode())


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({"user": {"data": [{"name": "dmp.example", "segment": [{"id": 1234}]}]}}, "user.data[].segment[].id"),
        ({"user": {"data": {"registered": True}}}, "user.data"),
        ({"user": {"id": 7}}, "user.id"),
        ({"user": {"eids": [{"uids": [{"id": 5}]}]}}, "user.eids[].uids[].id"),
        ({"user": {"ext": {"eids": "x"}}}, "user.ext.eids"),
        ({"site": {"domain": "news.example", "cat": "IAB1"}}, "site.cat"),
        ({"site": {"domain": "news.example", "publisher": 5}}, "site.publisher"),
        ({"site": {"domain": "news.example"}, "app": "none"}, "app"),
        ({"device": {"geo": {"country": 276}}}, "device.geo.country"),
        ({"device": {"devicetype": 10**30}}, "device.devicetype"),
        ({"device": {"devicetype": 1.5}}, "device.devicetype"),
        ({"device": {"ip": ["203.0.113.7"]}}, "device.ip"),
        ({"imp": [BANNER | {"tagid": 3}]}, "imp[].tagid"),
    ],
)
def test_odd_value_that_only_describes_is_absent(fields, left_out):
    request = parsed(**fields)
    assert request.left_out == (left_out,) and left_out in known_fields()
    assert request.segments == () and request.user_id == "" and len(request.imps) == 1
    assert request.site == "news.example"


def test_other_items_of_a_list_stay():
    request = parsed(site={"domain": "news.example", "cat": ["IAB1", 5, None, "IAB2"]}, badv=[None, "x.example"])
    assert request.categories == ("IAB1", "IAB2") and request.blocked_domains == {"x.example"}
    user = {
        "data": [7, {"segment": [{"id": 1}, {"id": "s"}]}],
        "eids": [{"uids": 1}, {"source": "a", "uids": [{"id": "b"}]}],
    }
    request = parsed(user=user)
    assert request.segments == ("s",) and request.user_id == "a:b"


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"tmax": 933.3333333333334}, "tmax", "got_float"),
        ({"tmax": 2**31}, "tmax", "got_int"),
        ({"tmax": "9" * 5000}, "tmax", "got_str"),
        ({"badv": "a.example"}, "badv", "got_str"),
        ({"bcat": [{"id": "IAB1"}]}, "bcat[0]", "got_object"),
        ({"cur": "USD"}, "cur", "got_str"),
        ({"regs": {"ext": {"dsa": {"dsarequired": "yes"}}}}, "regs.ext.dsa.dsarequired", "got_str"),
        ({"regs": {"ext": 7}}, "regs.ext", "got_int"),
        ({"user": {"ext": "x"}}, "user.ext", "got_str"),
        ({"device": "phone"}, "device", "got_str"),
        ({"imp": [BANNER | {"bidfloor": "0.5"}]}, "imp[0].bidfloor", "got_str"),
        ({"imp": [BANNER | {"bidfloor": True}]}, "imp[0].bidfloor", "got_bool"),
        ({"imp": [{"id": 5}]}, "imp[0].id", "got_int"),
        ({"imp": [{"id": "1", "banner": {"w": "wide"}}]}, "imp[0].banner.w", "got_str"),
        ({"imp": [{"banner": {}}], "user": {"id": 7}}, "imp[0].id", "missing"),
        ({"imp": {"id": "1"}}, "imp", "got_object"),
    ],
)
def test_odd_value_that_restricts_bids_is_refused(fields, field, reason):
    with pytest.raises(BadRequest) as caught:
        parsed(**fields)
    assert (caught.value.field, caught.value.reason) == (field, reason)


@pytest.mark.parametrize("secure", ["1", 1.0, True])
def test_whole_number_in_another_form_is_read(secure):
    request = parsed(imp=[BANNER | {"secure": secure, "banner": {"w": "300", "h": 250.0}}], tmax="120")
    assert request.imps[0].is_secure and request.imps[0].sizes == ((300, 250),) and request.tmax_ms == 120
    assert request.left_out == ()


def test_empty_value_of_a_wrong_type_is_absent():
    request = parsed(regs={"gpp": "", "gpp_sid": "", "ext": []}, device=[], user="", badv="", tmax="")
    assert request == parsed() and request.signals == Signals()


UNREAD = json.dumps(USUAL | {"site": {"domain": "news.example", "name": "%s"}})


@pytest.mark.parametrize(
    "name", [r"tea \ud83c", r"\udc00", r"\ud83c\ud83c", r"a\\\ud83c", r"\ud83c\udf75\ud83c", r"\uD83Cx"]
)
def test_half_a_surrogate_pair_in_a_field_that_is_not_read_is_skipped(name):
    request = read((UNREAD % name).encode())
    assert request.site == "news.example" and request.left_out == () and len(request.imps) == 1


def test_half_a_surrogate_pair_in_a_field_that_is_read_is_a_value_of_a_wrong_type():
    half = r"x\ud83c"
    request = read(
        json.dumps(USUAL | {"user": {"id": "HALF"}, "site": {"page": "HALF"}}).replace("HALF", half).encode()
    )
    assert request.user_id == "" and request.page == "" and request.left_out == ("site.page", "user.id")
    consent = json.dumps(USUAL | {"user": {"consent": "HALF"}}).replace("HALF", half).encode()
    assert read(consent).signals.consent, "a string that no decoder accepts"
    for field, fields in (
        ("id", {"id": "HALF"}),
        ("imp[0].id", {"imp": [BANNER | {"id": "HALF"}]}),
        ("badv[0]", {"badv": ["HALF"]}),
    ):
        with pytest.raises(BadRequest) as caught:
            read(json.dumps(USUAL | fields).replace("HALF", half).encode())
        assert (caught.value.field, caught.value.reason) == (field, "got_half_pair")


def test_a_whole_pair_and_an_escaped_backslash_stay_as_they_are():
    body = (UNREAD % r"\ud83c").replace("news.example", r"\ud83c\udf75.example").replace('"r1"', r'"\\ud83c"')
    request = read(body.encode())
    assert request.site == "\U0001f375.example" and request.request_id == r"\ud83c"


def test_second_reading_is_bounded():
    many = [5] * MAX_LEFT_OUT
    assert parsed(site={"domain": "news.example", "cat": many}).left_out == ("site.cat[]",)
    with pytest.raises(BadRequest, match=r"site\.cat"):
        parsed(site={"cat": [*many, 5]})
    with pytest.raises(BadRequest, match=r"user\.id"):
        parsed(user={"id": 7}, x="x" * MAX_ODD_BYTES)
    for body in (rb"\ud83c\\" * 10_000, b"\\" * MAX_ODD_BYTES, b"\\" * 10 * MAX_ODD_BYTES):
        with pytest.raises(BadRequest, match=r"is not JSON"):
            read(b'{"id": "r", "x": "' + body)


@pytest.mark.parametrize(
    "banner",
    [
        {"format": [{"wratio": 16, "hratio": 9, "wmin": 400}]},
        {"format": [{"w": 392, "h": 0}]},
        {"w": 320},
        {"w": -300, "h": -250},
        {"w": 100_000, "h": 100_000},
        {"w": 0, "h": 0},
        {"format": [{}]},
    ],
)
def test_imp_that_states_no_size_to_fill_is_left_out(banner):
    assert parsed(imp=[{"id": "1", "banner": banner}, BANNER | {"id": "2"}]).imps[0].imp_id == "2"


@pytest.mark.parametrize(
    ("banner", "sizes"),
    [
        ({}, ()),
        ({"format": []}, ()),
        ({"format": [{"wratio": 16, "hratio": 9, "wmin": 400}, {"w": 728, "h": 90}]}, ((728, 90),)),
        ({"format": [{"wratio": 16, "hratio": 9, "wmin": 400}], "w": 300, "h": 250}, ((300, 250),)),
        ({"format": [{"w": 393, "h": 852}]}, ((393, 852),)),
    ],
)
def test_sizes_in_pixels_are_used(banner, sizes):
    assert parsed(imp=[{"id": "1", "banner": banner}]).imps[0].sizes == sizes


@pytest.mark.parametrize(
    ("mimes", "is_taken"),
    [
        (["TEXT/HTML"], True),
        ([" Image/JPEG "], True),
        (["image/jpeg", "image/png"], True),
        (["Text/HTML; charset=utf-8"], True),
        ([], True),
        (["application/javascript"], False),
        (["VIDEO/MP4"], False),
    ],
)
def test_types_of_creatives_are_compared_without_case(mimes, is_taken):
    assert bool(parsed(imp=[{"id": "1", "banner": {"w": 300, "h": 250, "mimes": mimes}}]).imps) == is_taken


def test_byte_order_mark_is_refused():
    with pytest.raises(BadRequest, match="body"):
        read(b"\xef\xbb\xbf" + json.dumps(USUAL).encode())


def test_twin_imp_ids_are_refused():
    with pytest.raises(BadRequest) as caught:
        parsed(imp=[BANNER, {"id": "1", "native": {"request": "{}"}}])
    assert (caught.value.field, caught.value.reason) == ("imp[1].id", "duplicate")


def test_deal_beside_the_open_auction_leaves_the_imp_open():
    deals = [{"id": "D1", "bidfloor": 9.0, "at": 3}]
    assert parsed(imp=[BANNER | {"pmp": {"deals": deals}}]).imps
    assert parsed(imp=[BANNER | {"pmp": {"private_auction": 1, "deals": deals}}]).has_deals_only


def test_no_value_of_a_request_is_in_a_reason():
    for fields in ({"badv": "secret"}, {"imp": [BANNER, BANNER]}, {"tmax": -77}, {"regs": {"ext": "secret"}}):
        with pytest.raises(BadRequest) as caught:
            parsed(**fields)
        assert caught.value.reason.replace("_", "").isalpha()
    assert openrtb.MAX_PIXELS == 10_000
