"""Claim: parsing a bid request and writing its response takes under 150 microseconds of processor time.

    python bench/openrtb.py

One core, one thread, processor time, medians over batches. Measured:

- ``read_us``: `openrtb.read` of two golden requests, of an exchange and of a page; ``read_us_20_imps``: of a request
  with 20 imps; ``write_us``: `openrtb.write` of two bids for the page, macros filled; ``request_us``: parsing and
  answering the page's request;
- ``permissions_us``: `consent.permissions` with a TC string seen before; ``decode_us``: of a new one, the median
  and the longest of the golden strings; ``decode_us_hostile``: of one with as many ranges as its length permits.

Ends with one line of JSON.
"""

from __future__ import annotations

import base64
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from leadre.serve.protocol import consent, openrtb, tcf
from leadre.types import Bid, Signals

TESTS = Path(__file__).parents[1] / "tests"


def us(call: Callable[[], object], *, batches: int = 30, calls: int = 100) -> float:
    """Median microseconds of processor time of one call."""
    times = []
    for _ in range(batches):
        started_ns = time.thread_time_ns()
        for _ in range(calls):
            call()
        times.append((time.thread_time_ns() - started_ns) / calls / 1e3)
    return round(statistics.median(times), 1)


def body(name: str, *, times: int = 1) -> bytes:
    """A golden request, compact, with its first imp repeated ``times`` times."""
    request = json.loads((TESTS / f"golden/openrtb/{name}.json").read_text())["request"]
    if times > 1:
        request["imp"] = [request["imp"][0] | {"id": str(n)} for n in range(times)]
    return json.dumps(request, separators=(",", ":")).encode()


def bid(imp_id: str) -> openrtb.Rendered:
    event = "https://ads.example/e/{}?t=" + "x" * 180 + "&p=${{AUCTION_PRICE}}"
    return openrtb.Rendered(
        bid=Bid(
            bid_id="b-" + imp_id,
            imp_id=imp_id,
            ad_id="ad-1",
            campaign_id="c-1",
            advertiser_id="a-1",
            price_nanos=1_234_567,
            currency="USD",
            size=(300, 250),
            source="stored",
            propensity=0.1,
        ),
        adm=f"<a href='{event.format('click')}'><img src='{event.format('imp')}'></a>" + " " * 500,
        nurl=event.format("win"),
        burl=event.format("bill"),
        adomain=("shop.example",),
    )


def longest() -> str:
    """A TC string of the greatest length, which is a list of 1,480 ranges of vendors."""
    entries = ("1" + f"{7:016b}" + f"{9:016b}") * 1480
    bits = "000010" + "0" * 207 + f"{9:016b}" + "1" + f"{1480:012b}" + entries + "0" * 29
    bits += "0" * (-len(bits) % 24)
    return base64.urlsafe_b64encode(int(bits, 2).to_bytes(len(bits) // 8, "big")).decode()


def main() -> None:
    page = body("prebidjs_11")
    exchange = body("exchange_26")
    large = body("prebidjs_11", times=20)
    request = openrtb.read(page)
    bids = [bid(imp.imp_id) for imp in request.imps]

    def answer() -> bytes:
        return openrtb.write(openrtb.read(page), bids, seat="leadre", fills_macros=True)

    lines = (TESTS / "serve/protocol/golden/tcstrings.jsonl").read_text().splitlines()
    strings = sorted((json.loads(line)["text"] for line in lines), key=len)
    median = strings[len(strings) // 2]
    ranges = longest()
    signals = Signals(gdpr=True, consent=median)
    figures: dict[str, object] = {
        "bench": "openrtb",
        "bytes": [len(page), len(exchange)],
        "read_us": [us(lambda: openrtb.read(page)), us(lambda: openrtb.read(exchange))],
        "read_us_20_imps": us(lambda: openrtb.read(large)),
        "write_us": us(lambda: openrtb.write(request, bids, seat="leadre", fills_macros=True)),
        "request_us": us(answer),
        "permissions_us": us(lambda: consent.permissions(signals, 0, vendor_id=755, when_absent=True)),
        "decode_us": [us(lambda text=text: tcf.decode(text, 755)) for text in (median, strings[-1])],
        "decode_us_hostile": us(lambda: tcf.decode(ranges, 755)),
        "characters": [len(median), len(strings[-1]), len(ranges)],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
