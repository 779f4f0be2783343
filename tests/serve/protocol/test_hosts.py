from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.serve.protocol.hosts import host_of, registrable, with_parents


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("shop.example", "shop.example"),
        (" Shop.Example ", "shop.example"),
        ("www.shop.example", "shop.example"),
        ("WWW.shop.example.", "shop.example"),
        ("*.shop.example", "shop.example"),
        ("https://shop.example/", "shop.example"),
        ("https://user:word@www.shop.example:8443/a?b=https://c.example#d", "shop.example"),
        ("//shop.example/a", "shop.example"),
        ("shop.example:443", "shop.example"),
        ("shop.example/path", "shop.example"),
        ("shop.example\\path", "shop.example"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("XN--MNCHEN-3YA.example", "xn--mnchen-3ya.example"),
        ("MÜNCHEN.example", "xn--mnchen-3ya.example"),
        ("shop。example", "shop.example"),  # an ideographic full stop separates labels
        ("http://10.0.0.1:80/", "10.0.0.1"),
        ("http://[2001:db8::1]:80/a", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("com.example.game", "com.example.game"),
        ("under_score.example", "under_score.example"),
        ("co.uk", "co.uk"),
        ("", ""),
        ("https://", ""),
        ("/path", ""),
        ("a" * 254, ""),
        ("https://[", ""),
    ],
)
def test_host_is_in_one_form(text, host):
    assert host_of(text) == host
    assert host_of(host) == host


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("shop.example", "shop.example"),
        ("a.b.shop.example", "shop.example"),
        ("a.shop.co.uk", "shop.co.uk"),
        ("co.uk", ""),
        ("someone.github.io", "someone.github.io"),
        ("github.io", ""),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("10.0.0.1", ""),
        ("2001:db8::1", ""),
        ("", ""),
    ],
)
def test_registrable_domain_is_a_label_below_a_public_suffix(host, domain):
    assert registrable(host) == domain


def test_domains_above_a_host():
    assert list(with_parents("a.b.example")) == ["a.b.example", "b.example", "example"]
    assert list(with_parents("10.0.0.1")) == ["10.0.0.1"]
    assert list(with_parents("")) == []


@pytest.mark.timeout(60)  # a search for the scheme takes an hour
@pytest.mark.parametrize("text", ["{}", "https://{}", "{}/", "{}:80", "a.{}!", "{}\u00e9"])
def test_long_text_names_no_host_and_takes_no_long_time(text):
    assert host_of(text.format("a" * 500_000)) == ""


@given(st.text() | st.from_regex(r"(https?://)?[a-zA-Z0-9.:@/\[\]*-]{0,30}", fullmatch=True))
def test_any_text_has_a_host_or_none(text):
    host = host_of(text)
    assert len(host) <= 253
    assert registrable(host) in ("", *with_parents(host))
