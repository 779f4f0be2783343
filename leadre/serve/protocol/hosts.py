"""Hosts of sites and advertisers: what people write in lists of domains, in one form that can be compared.

A registrable domain is a public suffix with one label before it: ``shop.co.uk``. The suffixes are those of the Public
Suffix List with its private part (``github.io``: its customers are strangers to each other), as the installed package
has it; nothing is fetched.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache

import idna
from publicsuffixlist import PublicSuffixList

MAX_HOST_CHARS = 253  # RFC 1035
MAX_WRITTEN_CHARS = 4 * MAX_HOST_CHARS  # a name in another script is at most its ASCII form; the rest is ignorable
_PLAIN = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:(?=//)", re.ASCII)
_PORT = re.compile(r":[0-9]*$", re.ASCII)


def host_of(text: str) -> str:
    """The host that a URL or an entry of a list names: lower case, ASCII, without "www."; "" if it names none.

    ``https://WWW.Shop.example:443/a``, ``//shop.example``, ``*.shop.example`` and ``shop.example.`` are all
    ``shop.example``. Names of other scripts are in their ASCII form (IDNA 2008 with the mapping of UTS 46). The time
    grows with the length of the text, which a stranger may have written.
    """
    host = text.strip().lower()
    if not _PLAIN.fullmatch(host):
        host = _ascii(_authority(host))
    host = host.removeprefix("www.")
    return host if len(host) <= MAX_HOST_CHARS else ""


def with_parents(host: str) -> Iterator[str]:
    """The host and all domains above it: a.b.c, b.c, c. An address has none above it; "" has none at all."""
    while host:
        yield host
        if _is_address(host):
            return
        host = host.partition(".")[2]


def registrable(host: str) -> str:
    """The registrable domain of a host in the form of `host_of`; "" for a public suffix or an address."""
    return "" if not host or _is_address(host) else _suffixes().privatesuffix(host) or ""


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def _authority(text: str) -> str:
    """The host's part of a URL in lower case, with or without a scheme."""
    scheme = _SCHEME.match(text)  # a search would start again at each letter
    text = text[scheme.end() if scheme else 0 :].removeprefix("//")
    text = re.split(r"[/?#\\]", text, maxsplit=1)[0].rpartition("@")[2]
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return _PORT.sub("", text) if text.count(":") < 2 else text  # two colons: an IPv6 address


def _ascii(host: str) -> str:
    host = host.removeprefix("*.").strip(".")
    if host.isascii():
        return host
    if len(host) > MAX_WRITTEN_CHARS:
        return ""
    try:
        return idna.encode(host, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):  # no name that can be registered; it is compared as it is written
        return host


def _is_address(host: str) -> bool:
    if not (host[-1].isdigit() or ":" in host):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
