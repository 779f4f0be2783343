"""Privacy signals in every place and form, on real bodies."""

from __future__ import annotations

import itertools
import json

import pytest

from leadre.serve.protocol.openrtb import read
from leadre.serve.protocol.signals import UNREADABLE
from leadre.types import Signals

PLACES = [("request",), ("request", "ext")]
PLACES += [(name, *ext) for name in ("site", "app", "user", "regs", "device") for ext in ((), ("ext",))]
FLAGS = ("gdpr", "gpc", "coppa", "lmt", "dnt")
ABSENT = (None, "")
NO = (0, "0", False, "false", 0.0)
YES = (1, "1", True, "true", "yes", 2, -1, 0.5, "FALSE", "00", " ", [], {}, [0], {"a": 1}, 10**30, "\u0000")


def body(*placed):
    """A request with (place, name, value) of each signal."""
    request = {"id": "r1", "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}]}
    for place, name, value in placed:
        at = request
        for part in place:
            at = at if part == "request" else at.setdefault(part, {})
        at[name] = value
    return json.dumps(request).encode()


def signals(*placed):
    return read(body(*placed)).signals


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_flag_counts_in_every_place_and_form(place, name):
    absent = None if name == "gdpr" else False
    for values, expected in ((ABSENT, absent), (NO, False), (YES, True)):
        for value in values:
            assert getattr(signals((place, name, value)), name) is expected, value
            others = {flag: getattr(signals((place, name, value)), flag) for flag in FLAGS if flag != name}
            assert not any(others.values())


@pytest.mark.parametrize(("place", "other"), list(itertools.combinations(PLACES, 2)))
def test_stricter_copy_wins_in_any_two_places(place, other):
    for name in FLAGS:
        for yes in ((place, name, "yes"), (other, name, 1)):
            for no in (0, "", None, "false"):
                assert getattr(signals((place, name, no), (other, name, no), yes), name) is True
        assert signals((place, "gdpr", 0), (other, "gdpr", "")).gdpr is False
    read_two = signals((place, "us_privacy", "1YNN"), (other, "us_privacy", "1YYN"))
    assert read_two.us_privacy == "1YYN"
    assert signals((place, "gpp_sid", [7, 8]), (other, "gpp_sid", [8, 2])).gpp_sid == (7, 8, 2)
    for name in ("consent", "gpp"):
        assert getattr(signals((place, name, "A"), (other, name, "A")), name) == "A"
        assert getattr(signals((place, name, "A"), (other, name, "B")), name) == UNREADABLE
        assert getattr(signals((place, name, ""), (other, name, "B")), name) == "B"


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_text_counts_in_every_place(place):
    for name in ("consent", "us_privacy", "gpp"):
        for value, expected in (
            (None, ""),
            ("", ""),
            ("x", "x"),
            (5, UNREADABLE),
            (["x"], UNREADABLE),
            (0, UNREADABLE),
        ):
            assert getattr(signals((place, name, value)), name) == expected
    lists = [(None, ()), ("", ()), ([], ()), ([7, None], (7,)), (7, (7,)), ("7", (7,)), (["7", "-1"], (7, -1))]
    lists += [("x", (0,)), ([{}, 8], (0, 8)), ([True], (0,)), ([10**30], (0,)), ({"7": 1}, (0,)), (["9" * 999], (0,))]
    lists += [([7] * 64, (7,)), ([7] * 65, (0,))]
    for value, expected in lists:
        assert signals((place, "gpp_sid", value)).gpp_sid == expected


def test_higher_dsa_requirement_wins():
    for first, second in itertools.permutations([3, 1]):
        placed = ((("regs",), "dsa", {"dsarequired": first}), (("regs", "ext"), "dsa", {"dsarequired": second}))
        assert signals(*placed).dsa_required == 3


def test_us_privacy_copy_that_forbids_wins_over_one_that_permits():
    for first, second in itertools.permutations(["1YNN", "1NNN"]):
        assert signals((("regs",), "us_privacy", first), (("user",), "us_privacy", second)).us_privacy == "1NNN"


@pytest.mark.parametrize(
    ("country", "is_gdpr"),
    [
        *(
            (code, True)
            for code in ("DE", "de", "DEU", "deu", "FR", "GB", "UK", "GBR", "CH", "CHE", "IS", "NOR", "LIE")
        ),
        *((code, True) for code in ("LIE", "EL", "GRC", "RE", "REU", "AX", " at ")),
        *((code, False) for code in ("US", "USA", "BR", "TUR", "UKR", "RU", "", "XX", "EU", "D", "DEUT", 276, None)),
    ],
)
@pytest.mark.parametrize("place", [("device", "geo"), ("user", "geo")], ids=".".join)
def test_country_of_device_or_user_is_one_of_the_gdpr(place, country, is_gdpr):
    assert signals((place, "country", country)).in_gdpr_country == is_gdpr
    other = ("user" if place[0] == "device" else "device", "geo")
    assert signals((place, "country", country), (other, "country", "USA")).in_gdpr_country == is_gdpr


def test_country_is_targeted_by_its_code_of_three_letters():
    countries = [read(body((("device", "geo"), "country", code))).country for code in ("us", "USA", "usa", "UK", "ZZ")]
    assert countries == ["USA", "USA", "USA", "GBR", "ZZ"]


def test_objects_of_a_wrong_type_hold_no_signal():
    assert read(body((("site",), "ext", "x"), (("request",), "ext", 5))).signals == Signals()
    assert read(body((("request",), "site", "x"), (("request",), "app", 7))).signals == Signals()


def test_signal_beside_an_odd_value_counts():
    """A second reading, for a value of a wrong type elsewhere, loses no signal."""
    placed = [(place, "gpc", {"odd": [1]}) for place in PLACES]
    for place in PLACES:
        read_odd = read(body((place, "gpc", [0]), (("user",), "id", 7), (("device", "geo"), "country", 5)))
        assert read_odd.signals.gpc and set(read_odd.left_out) == {"user.id", "device.geo.country"}
    assert read(body(*placed, (("user",), "id", 7))).signals == Signals(gpc=True)
