"""IDs of users: their order, and texts that are no ID."""

from __future__ import annotations

import itertools
import json

import pytest

from leadre.serve.protocol.openrtb import read
from leadre.serve.protocol.user_ids import MAX_IDS, is_placeholder

ZEROS = "00000000-0000-0000-0000-000000000000"
NOBODY = [
    *("", " ", "0", "00", "-", "-1", ZEROS, ZEROS.replace("-", ""), "{" + ZEROS + "}"),
    *("null", "NULL", "Null", "undefined", "Undefined", "none", "nil", "NaN", "(null)", "<null>", "[object Object]"),
    *("optout", "OptOut", "opt-out", "unknown", " null ", "false", "*"),
    *("${UID}", "$UID", "{{user_id}}", "{USER_ID}", "[USER_ID]", "%%USER_ID%%", "__IDFA__", "<user_id>", "#UID#"),
    *("@ID@", "%24%7BUID%7D", "%7B%7Bid%7D%7D", "%5BIFA%5D", "$!{id}", "[IFA]\n"),
    *("id5-sync.com:0", f"pubcid.org:{ZEROS}", "uidapi.com:undefined", "x.example:${UID}", "x.example:"),
]
SOMEBODY = [
    *(
        "u1",
        "01",
        "0x1",
        "10",
        "-12",
        "nullify",
        "nonesuch",
        "a*",
        "**",
        "user:0",
        "household-6",
        "id5-sync.com:ID5*abc",
    ),
    *("00000000-0000-0000-0000-000000000001", "a$b", "a{b}", "100%", "50%25", "AD4A==", "x.example:u:0", "_u_", "__u"),
]


def ids(user=None, device=None):
    fields = {"id": "r1", "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}], "user": user, "device": device}
    request = read(json.dumps(fields).encode())
    return tuple(filter(None, (request.user_id, *request.other_user_ids)))


def eids(*pairs):
    return [{"source": source, "uids": [{"id": uid}]} for source, uid in pairs]


@pytest.mark.parametrize("text", NOBODY)
def test_placeholder_is_no_id_in_any_place(text):
    assert is_placeholder(text)
    user = {"id": text, "buyeruid": text, "eids": eids(("x.example", text)), "ext": {"eids": eids(("y.example", text))}}
    assert ids(user, {"ifa": text}) == ()
    assert ids(user | {"id": "u1"}, {"ifa": text}) == ("u1",)
    assert ids(user, {"ifa": "A-1"}) == ("A-1",)


def test_placeholder_of_a_source_without_a_domain_is_no_id():
    assert ids({"eids": eids(("provider", "0"), ("", "null"), ("provider", "x"))}) == ("provider:x",)


@pytest.mark.parametrize("text", SOMEBODY)
def test_other_text_is_an_id(text):
    assert not is_placeholder(text) and ids({"id": text}) == (text,)


def test_order_of_ids_is_buyeruid_extended_ids_exchange_device():
    user = {"id": "u", "buyeruid": "b", "eids": eids(("s", "e"), ("a", "2")), "ext": {"eids": eids(("a", "1"))}}
    assert ids(user, {"ifa": "I"}) == ("b", "a:1", "a:2", "s:e", "u", "I")


def test_order_of_the_array_and_copies_do_not_matter():
    pairs = [("uidapi.com", "U"), ("pubcid.org", "P"), ("id5-sync.com", "0")]
    for order in itertools.permutations(pairs):
        for copies in (
            {"eids": eids(*order)},
            {"ext": {"eids": eids(*order)}},
            {"eids": eids(*order), "ext": {"eids": eids(*order)}},
        ):
            assert ids(copies) == ("pubcid.org:P", "uidapi.com:U")


def test_number_of_ids_is_bounded():
    many = eids(*((f"s{number}.example", "u") for number in range(300)))
    assert len(ids({"eids": many, "id": "u"}, {"ifa": "I"})) == MAX_IDS
    placeholders = eids(*((f"s{number}.example", "0") for number in range(99)))
    assert ids({"eids": [*placeholders, *many], "id": "u"}) == ("s0.example:u", "u")


LONG = {"dots": "." * 200_000, "domain": "a." * 100_000, "spaces": " " * 200_000 + "x", "macro": "<>" * 100_000 + "x"}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_work_is_linear_in_the_length_of_a_text(text):
    """Were anything tried twice, each of these would take minutes."""
    assert not is_placeholder(text) and not is_placeholder("%" + text)


def test_half_a_character_is_no_id():
    assert ids({"id": 7, "eids": [{"source": 5, "uids": [{"id": "x"}]}]}) == (":x",)
