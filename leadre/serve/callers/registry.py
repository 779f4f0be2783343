"""The callers of the exchange route, from a TOML file with one section for each::

    [exchange-a]
    tokens = ["<SHA-256 of a token, in hex>"]   # in force together, so that a token can be replaced
    addresses = ["192.0.2.0/24"]
    certificates = ["<value of the header X-Client-Certificate>"]
    requests_per_s = 500
    max_open_bids = 100_000
    max_open_money = 100.0
    exp_s = 120
    sends_no_price = false

A request must satisfy each of ``tokens``, ``addresses`` and ``certificates`` that the section has, and one of the
values of each. While the file exists, its callers alone are admitted.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from leadre import progress
from leadre.errors import InputError
from leadre.serve.callers.party import Bound, Party
from leadre.units import NANOS_PER_UNIT

MAX_CALLERS = 200  # each is a label of metrics
MAX_FILE_BYTES = 1 << 20
MAX_CACHED = 10_000  # addresses whose caller is remembered
RESERVED_NAMES = ("operator",)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)

Reason = Literal["unknown", "token", "address", "certificate"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section of the file. ``max_open_money``: units of each currency. 0 = no limit for ``requests_per_s``."""

    tokens: list[str] = []
    addresses: list[str] = []
    certificates: list[str] = []
    requests_per_s: Annotated[float, msgspec.Meta(ge=0, le=10**9)] = 0.0
    max_open_bids: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 100_000
    max_open_money: Annotated[float, msgspec.Meta(gt=0, le=10**9)] = 100.0
    exp_s: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 0
    sends_no_price: bool = False


@dataclass(frozen=True)
class Caller:
    """A caller and how it is recognised."""

    name: str
    section: Section
    networks: tuple[Network, ...]

    @cached_property
    def party(self) -> Party:
        """The caller as a bid decision knows it."""
        section = self.section
        bound = Bound(self.name, section.max_open_bids, round(section.max_open_money * NANOS_PER_UNIT))
        return Party(
            name=self.name,
            bounds=(bound,),
            share=self.name,
            cap_holder=self.name,
            exp_s=section.exp_s,
            sends_no_price=section.sends_no_price,
            may_test=True,
        )

    def has_token(self, presented: str) -> bool:
        """Whether ``presented`` is one of the caller's tokens."""
        presented_hash = token_hash(presented)
        return any(hmac.compare_digest(presented_hash, known) for known in self.section.tokens)

    def has_address(self, address: str) -> bool:
        """Whether requests from the address are the caller's; True if it names no addresses."""
        parsed = plain_address(address)
        return not self.networks or (parsed is not None and any(parsed in network for network in self.networks))

    def has_certificate(self, certificate: str) -> bool:
        """Whether the client certificate is the caller's; True if it names none."""
        return not self.section.certificates or certificate in self.section.certificates


def token_hash(token: str) -> str:
    """The hash of a token, as the file has it. A token has 256 random bits, so the hash need not be slow."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def plain_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, one of IPv4 in its own form; None for other text."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, ipaddress.IPv6Address) else parsed


def read(path: Path) -> dict[str, Caller]:
    """The callers of a file, by name. InputError names file, section and value; FileNotFoundError without a file."""
    data = path.read_bytes()
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path}: has more than {MAX_FILE_BYTES:,} bytes")
    try:
        return parse(data.decode())
    except (InputError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: {error}") from error


def parse(text: str) -> dict[str, Caller]:
    """The callers of the text of a file. InputError or TOMLDecodeError."""
    sections = tomllib.loads(text)
    if len(sections) > MAX_CALLERS:
        raise InputError(f"has {len(sections)} callers; at most {MAX_CALLERS}")
    callers = {name: _caller(name, section) for name, section in sections.items()}
    _check_overlaps([caller for caller in callers.values() if not caller.section.tokens])
    return callers


def check_name(name: str) -> None:
    """InputError for text that can be no caller's name."""
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
        rule = "1 to 40 of the characters a to z, 0 to 9, '-' and '_', and not 'operator'"
        raise InputError(f"the name of a caller is {name[:80]!r}; it must be {rule}")


def _caller(name: str, values: object) -> Caller:
    check_name(name)
    try:
        section = msgspec.convert(values, Section)
    except msgspec.ValidationError as error:
        raise InputError(f"[{name}]: {error}") from error
    if not (section.tokens or section.addresses or section.certificates):
        raise InputError(f"[{name}]: has no tokens, addresses or certificates, so no request would be its own")
    for value in section.tokens:
        if not _HASH.fullmatch(value):
            raise InputError(f"[{name}]: a token is not a SHA-256 in hex; `leadre serve caller` writes one")
    if "" in section.certificates:
        raise InputError(f"[{name}]: a certificate is empty")
    return Caller(name, section, tuple(_network(name, address) for address in section.addresses))


def _network(name: str, address: str) -> Network:
    try:
        return ipaddress.ip_network(address, strict=False)
    except ValueError as error:
        rule = "an address or a network, such as '192.0.2.7' or '192.0.2.0/24'"
        raise InputError(f"[{name}]: addresses has {address!r}; it must be {rule}") from error


def _check_overlaps(callers: list[Caller]) -> None:
    """InputError if a request could be of two callers that have no token."""
    for number, caller in enumerate(callers):
        for other in callers[:number]:
            shared = set(caller.section.certificates) & set(other.section.certificates)
            are_by_address = not (caller.section.certificates or other.section.certificates)
            pairs = [(a, b) for a in caller.networks for b in other.networks if a.version == b.version]
            if shared or (are_by_address and any(a.overlaps(b) for a, b in pairs)):
                raise InputError(f"[{caller.name}] and [{other.name}] have an address or a certificate in common")


class Callers:
    """The callers of a file that may change. Without a file any caller is admitted, unless ``is_required``.

    The callers that were read last stay in force if the file is damaged later, or gone. If it is damaged when it is
    first read, no caller is admitted.
    """

    def __init__(self, path: Path, *, is_required: bool = False) -> None:
        self._path = path
        self._version = (0, 0, 0)  # inode, time and size of the file that was looked at last
        self.is_open = not is_required
        self._set({})
        self.follow()

    def follow(self) -> None:
        """Read the file if it has changed."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            if any(self._version):
                progress.say(f"serve: {self._path} is gone; its callers stay in force until the next start")
            self._version = (0, 0, 0)
            return
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if version == self._version:
            return
        self.is_open = False
        self._version = version
        try:
            self._set(read(self._path))
        except InputError as error:
            progress.say(f"serve: the callers stay as they were: {error}")
        else:
            progress.say(f"serve: process {os.getpid()} admits the {len(self.by_name)} callers of {self._path}")

    def find(self, token: str, address: str, certificate: str) -> Caller | Reason:
        """The caller of a request, or the reason why it is none's. ``token`` and ``certificate`` may be ""."""
        caller: Caller | None
        if token:
            caller = self.by_name.get(token.partition(".")[0])
            if caller is None or not caller.has_token(token):
                return "token"
        elif certificate and certificate in self._by_certificate:
            caller = self._by_certificate[certificate]
        else:
            caller = self._of_address(address)
            if caller is None:
                return "unknown"
        if not caller.has_address(address):
            return "address"
        return caller if caller.has_certificate(certificate) else "certificate"

    def _of_address(self, address: str) -> Caller | None:
        """The caller that is recognised by the address alone."""
        if address not in self._cached:
            if len(self._cached) >= MAX_CACHED:
                self._cached.clear()
            matches = (caller for caller in self._by_address if caller.has_address(address))
            self._cached[address] = next(matches, None)
        return self._cached[address]

    def _set(self, callers: Mapping[str, Caller]) -> None:
        self.by_name = callers
        without_token = [caller for caller in callers.values() if not caller.section.tokens]
        self._by_certificate = {value: caller for caller in without_token for value in caller.section.certificates}
        self._by_address = [caller for caller in without_token if not caller.section.certificates]
        self._cached: dict[str, Caller | None] = {}
