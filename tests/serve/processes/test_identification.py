"""Senders of bid requests: rates of callers, origins and networks; certificates that only a proxy may state."""

from __future__ import annotations

import pytest

from leadre.__main__ import main
from leadre.clock import ManualClock
from leadre.errors import InputError
from leadre.serve.callers.party import Party
from leadre.serve.callers.registry import Callers, token_hash
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Network, Pages
from leadre.serve.processes import bootstrap
from leadre.serve.processes.connections import PEER
from leadre.serve.processes.identification import Identification, network_of
from leadre.serve.settings import Settings

ORIGIN = "https://news.example"
FILE = f"""
[fast]
tokens = ["{token_hash("fast.1")}"]
requests_per_s = 10

[slow]
tokens = ["{token_hash("slow.1")}"]
requests_per_s = 0.5

[signed]
certificates = ["ab12"]
"""


@pytest.fixture
def callers(tmp_path):
    (tmp_path / "callers.toml").write_text(FILE)
    return Callers(tmp_path / "callers.toml")


def sent(address="9.9.9.9", query="", peer=None, **headers):
    lines = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"client": (address, 1), "headers": lines, "query_string": query.encode(), PEER: peer or address}


def identification(workers=1, proxies=(), clock=None, **pages):
    return Identification(Network(proxies=proxies), Pages(**pages), workers, clock or ManualClock())


def test_callers_have_rates_of_their_own_which_workers_share(callers):
    clock = ManualClock()
    senders = identification(workers=2, clock=clock)

    def admitted(name, count):
        results = [senders.exchange(callers, sent(authorization=f"Bearer {name}.1")) for _ in range(count)]
        refused = [result for result in results if not isinstance(result, Party)]
        assert {refusal.status for refusal in refused} <= {429} and {refusal.reason for refusal in refused} <= {name}
        return count - len(refused)

    assert admitted("fast", 30) == 10, "two seconds of half of the rate"
    assert admitted("slow", 5) == 1
    assert senders.exchange(callers, sent(authorization="bearer slow.1")).retry_after_s == 4
    clock.elapsed_s += 2
    assert (admitted("fast", 30), admitted("slow", 5)) == (10, 0)
    clock.elapsed_s += 2
    assert admitted("slow", 5) == 1


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        (sent(authorization="Bearer fast.1"), 0),
        (sent(query="x=1&caller=fast.1"), 0),
        (sent(query="caller=fast.1", authorization="Bearer wrong"), 401),
        (sent(query="caller="), 401),
        (sent(query="caller=%ff"), 401),
        (sent(authorization="Basic fast.1"), 401),
        (sent(authorization="Bearer"), 401),
        (sent(authorization="Bearer fast.1,Bearer fast.1"), 401),
        (sent(authorization="Bearer \xff\xfe.\xff"), 401),
        (sent(), 401),
    ],
)
def test_token_is_in_the_header_or_in_the_url(callers, scope, status):
    result = identification().exchange(callers, scope)
    assert (0 if isinstance(result, Party) else result.status) == status


@pytest.mark.parametrize(
    ("peer", "proxies", "is_believed"),
    [
        ("127.0.0.1", ("127.0.0.1",), True),
        ("::ffff:10.1.2.3", ("10.0.0.0/8",), True),
        ("9.9.9.9", ("127.0.0.1",), False),
        ("127.0.0.1", (), False),
        ("", ("127.0.0.1",), False),
    ],
)
def test_certificate_is_believed_from_a_proxy_alone(callers, peer, proxies, is_believed):
    scope = sent(peer=peer, x_client_certificate="ab12")
    result = identification(proxies=proxies).exchange(callers, scope)
    assert isinstance(result, Party) == is_believed
    assert isinstance(result, Party) or result.status == 401
    twice = sent(peer=peer, x_client_certificate="ab12") | {
        "headers": [(b"x-client-certificate", b"ab12"), (b"x-client-certificate", b"ab12")]
    }
    assert not isinstance(identification(proxies=proxies).exchange(callers, twice), Party), "one of them is a client's"


def test_pages_are_limited_by_network_and_by_origin():
    clock = ManualClock()
    pages = identification(clock=clock, page_network_per_s=5, page_origin_per_s=10)

    def statuses(count, address, origin=ORIGIN):
        results = [pages.page({ORIGIN, "https://b.example"}, sent(address, origin=origin)) for _ in range(count)]
        return [0 if isinstance(result, Party) else (result.status, result.reason) for result in results]

    assert statuses(12, "9.9.9.1") == [0] * 10 + [(429, "network")] * 2
    assert statuses(3, "9.9.9.250") == [(429, "network")] * 3, "the same /24"
    assert statuses(12, "9.9.8.1") == [0] * 10 + [(429, "network")] * 2
    assert statuses(3, "9.9.7.1") == [(429, "origin")] * 3, "the origin has sent as many as it may"
    assert statuses(3, "9.9.7.1", "https://b.example") == [0] * 3
    assert statuses(1, "2600:1:2:3::1") == [(429, "origin")]
    clock.elapsed_s += 10
    assert statuses(3, "127.0.0.1") == [0] * 3, "may be a proxy: no limit of its network"
    assert statuses(1, "9.9.9.1", "") == [(403, "no_origin")]
    assert statuses(1, "9.9.9.1", "https://c.example") == [(403, "origin")]
    assert statuses(1, "9.9.9.1", "null") == [(403, "origin")]


def test_network_is_a_part_of_a_public_address():
    addresses = ("9.9.9.9", "::ffff:9.9.9.9", "2600:1:2:3::1", "127.0.0.1", "10.1.2.3", "::1", "", "x")
    assert [*map(network_of, addresses)] == ["9.9.9.0/24", "9.9.9.0/24", "2600:1:2::/48", "", "", "", "", ""]


@pytest.mark.parametrize(
    ("host", "public_url", "require_callers", "line"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080", False, "any program on this machine may request bids"),
        ("::1", "http://localhost:8080", False, "any program on this machine may request bids"),
        ("0.0.0.0", "http://127.0.0.1:8080", False, "WARNING: no caller is configured"),
        ("127.0.0.1", "https://ads.example", False, "WARNING: no caller is configured"),
        ("0.0.0.0", "https://ads.example", True, "exchanges get 401, as no caller is configured"),
    ],
)
def test_start_prints_which_callers_are_admitted(tmp_path, host, public_url, require_callers, line):
    paths = StatePaths(folder=tmp_path, store="")
    settings = Settings(public_url=public_url, require_callers=require_callers)
    assert bootstrap.describe_callers(paths, settings, host).startswith(line)
    paths.callers.write_text(FILE)
    assert "fast, signed, slow" in bootstrap.describe_callers(paths, settings, host)
    paths.callers.write_text("[")
    with pytest.raises(InputError, match=r"callers\.toml"):
        bootstrap.describe_callers(paths, settings, host)


def test_command_refuses_to_change_more_than_the_tokens_of_a_known_caller(tmp_path, capsys):
    command = ["serve", "caller", "--name", "a", "--state", str(tmp_path)]
    assert main([*command, "--requests-per-s", "5"]) == 0
    first = capsys.readouterr().out.strip()
    assert main(command) == 0
    second = capsys.readouterr().out.strip()
    callers = Callers(tmp_path / "callers.toml")
    assert {callers.find(token, "", "").section.requests_per_s for token in (first, second)} == {5.0}
    for wrong in (["--requests-per-s", "6"], ["--token", "false"], ["--name", "A"], ["--name", ""]):
        assert main([*command, *wrong]) == 2, wrong
    assert "only a token is added here" in capsys.readouterr().err
    assert main(["serve", "caller", "--name", "b", "--state", str(tmp_path), "--token", "false"]) == 2, "no mark at all"
    assert (tmp_path / "callers.toml").read_text().count("[a]") == 1
