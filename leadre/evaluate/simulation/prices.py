"""Competitors' prices: for each site the law of the lowest price that wins an impression.

A file of prices is JSON, site -> counts: the number at position i is that of auctions whose lowest winning price was
i hundredths of a CPM. In place of the counts there may be an object that has them as "price_counter_train", the form of
the published summary of iPinYou's logs (Zhang et al., arXiv 1407.7073). Auctions at position 0 count as at 1.

Letters: S sites, P positions, N auctions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leadre.errors import InputError
from leadre.units import NANOS_PER_CPM

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COUNTS = "price_counter_train"
STEP_NANOS = NANOS_PER_CPM // 100
MAX_POSITIONS = 100_000  # a CPM of 1,000
BUILT_IN_MEDIAN, BUILT_IN_SIGMA = (
    60,
    0.9,
)  # of the log-normal law, in hundredths of a CPM: about those of iPinYou's logs


@dataclass(frozen=True, eq=False)
class Prices:
    """The sites and the law of the price of each. ``share_SP``: shares of the positions, sum 1 in each row."""

    sites: tuple[str, ...]
    share_SP: Floats

    def digest(self) -> str:
        """A hash of the laws, for a recorded config."""
        return hashlib.sha256(json.dumps(self.sites).encode() + self.share_SP.tobytes()).hexdigest()

    def draw(self, site_N: Ints, generator: np.random.Generator) -> Ints:
        """[N] nanos of one impression, drawn from the laws of the auctions' sites."""
        by_SP = self.share_SP.cumsum(1)
        draws_N = generator.random(len(site_N))
        position_N = np.empty(len(site_N), np.int64)
        for site in range(len(self.sites)):
            of_site_N = site_N == site
            position_N[of_site_N] = np.searchsorted(by_SP[site], draws_N[of_site_N] * by_SP[site, -1], side="right")
        return nanos_of(position_N)

    def mean_nanos(self) -> float:
        """The mean price over all sites, which have equal traffic."""
        return float((self.share_SP.mean(0) * nanos_of(np.arange(self.share_SP.shape[1]))).sum())

    def expected(self, value_nanos: float) -> tuple[float, float]:
        """(probability that a bid of the value wins, expected second price of an auction), over all sites."""
        nanos_P = nanos_of(np.arange(self.share_SP.shape[1]))
        wins_P = self.share_SP.mean(0) * (nanos_P <= value_nanos)
        return float(wins_P.sum()), float((wins_P * nanos_P).sum())


def nanos_of(position_N: Ints) -> Ints:
    """[N] nanos of one impression at positions of a histogram."""
    return np.maximum(position_N, 1) * STEP_NANOS


def built_in() -> Prices:
    """One site with a log-normal law."""
    log_P = np.log(np.arange(1, 10 * BUILT_IN_MEDIAN))
    weight_P = np.exp(-((log_P - np.log(BUILT_IN_MEDIAN)) ** 2) / (2 * BUILT_IN_SIGMA**2) - log_P)
    return Prices(("log-normal",), np.append(0.0, weight_P / weight_P.sum())[None, :])


def read(path: Path) -> Prices:
    """The prices of a file. InputError names the site and the value that is wrong."""
    try:
        sites = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--prices {path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # JSON and UTF-8
        raise InputError(f"--prices {path}: is not JSON: {error}") from error
    if not isinstance(sites, dict) or not sites:
        raise InputError(f"--prices {path}: must be a JSON object, site -> list of counts, with at least one site")
    counts = {str(site): _counts(f"--prices {path}, site {site!r}", value) for site, value in sites.items()}
    share_SP = np.zeros((len(counts), max(map(len, counts.values()))))
    for row, count_P in enumerate(counts.values()):
        share_SP[row, : len(count_P)] = np.array(count_P, float) / sum(count_P)
    return Prices(tuple(counts), share_SP)


def _counts(where: str, value: object) -> Sequence[float]:
    counts = value.get(COUNTS) if isinstance(value, Mapping) else value
    if not isinstance(counts, list):
        raise InputError(f"{where}: must be a list of counts, or an object that has it as {COUNTS!r}")
    for position, count in enumerate(counts):
        if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < 1e15:
            raise InputError(f"{where}: entry {position} is {count!r}; a count is a number of auctions, 0 or more")
    if not sum(counts) or len(counts) > MAX_POSITIONS:
        raise InputError(f"{where}: needs a count above 0, and at most {MAX_POSITIONS:,} counts, not {len(counts):,}")
    return counts
