"""Bid shading for first-price auctions: the bid that maximises (value - bid) x W(bid), W the probability of a win.

A bid learns one of three things about the *price*, the lowest bid that would have won: the price itself (reported for
wins and losses), the price of wins alone (a second-price auction), or win and loss alone (a first-price auction
without a report). In each case the price lies in an interval, so `Feedback` holds intervals, and each law of the price
is fitted to intervals. The histogram is Turnbull's self-consistent estimate (1976): with censored losses it is Kaplan
and Meier's product-limit estimate, with wins and losses alone isotonic regression. The log-normal is fitted by EM.
`fit_logistic` is the win-rate model of arXiv 2009.09259, for wins and losses alone.

To pace a shaded bid, shade the paced value: the value maximiser of a budget solves ``(v / (1 + m) - b) W(b)``. A factor
on the shaded bid is another, worse bid. A law fitted only where one bids extrapolates, so a small share of bids is
drawn at random (`explore`), and the record keeps the density of each.

Letters: N observed auctions, G grid of bids, K candidates, H bids of the upper hull.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SHADED_BY_AT_MOST = 0.5  # exploring bids are at least this share of the value
_LOG_RANGE = -math.log(SHADED_BY_AT_MOST)
Number = TypeVar("Number", float, Floats)
GRID_POINTS = 128
TAIL = 0.01  # share of the values at each end that the even part of a grid leaves out
MAX_SHADING = 1e3  # a pacer multiplies a value by a thousandth at least
MIN_SIGMA = 1e-3  # of a log-normal price
ITERATIONS = 200
TOLERANCE = 1e-6  # of the largest change of a probability in one iteration


@dataclass(frozen=True)
class Feedback:
    """Observed auctions: the price of each was above ``low_N`` and at most ``high_N``; equal if it is known.

    ``bid_N`` and ``won_N`` are the bids and their results. A bid that equals the price wins.
    """

    low_N: Floats
    high_N: Floats
    bid_N: Floats
    won_N: Bools

    def of(self, part_N: Bools) -> Feedback:
        """The feedback of a part of the auctions."""
        return Feedback(self.low_N[part_N], self.high_N[part_N], self.bid_N[part_N], self.won_N[part_N])

    @classmethod
    def of_prices(cls, bid_N: Floats, price_N: Floats) -> Feedback:
        """The price is reported for wins and for losses (``${AUCTION_MIN_TO_WIN}``, a loss notice with the price)."""
        return cls(price_N, price_N, bid_N, bid_N >= price_N)

    @classmethod
    def of_won_prices(cls, bid_N: Floats, won_N: Bools, price_N: Floats) -> Feedback:
        """The price is reported for wins alone; ``price_N`` of a loss is not read."""
        return cls(np.where(won_N, price_N, bid_N), np.where(won_N, price_N, np.inf), bid_N, won_N)

    @classmethod
    def of_wins(cls, bid_N: Floats, won_N: Bools) -> Feedback:
        """No price is reported."""
        return cls(np.where(won_N, 0.0, bid_N), np.where(won_N, bid_N, np.inf), bid_N, won_N)


@dataclass(frozen=True)
class WinCurve:
    """Probability to win ``win_G``, non-decreasing, at the bids ``bid_G``, ascending and above 0."""

    bid_G: Floats
    win_G: Floats

    def win(self, bid_K: Floats) -> Floats:
        """[K] probability to win with each bid: that of the highest bid of the grid not above it."""
        return np.append(0.0, self.win_G)[np.searchsorted(self.bid_G, bid_K, side="right")]

    def shade(self, value_K: Floats) -> Floats:
        """[K] the bid of the grid with the highest expected surplus, never above the value; 0 if each bid is."""
        breaks_H, bids_H = self.hull
        return bids_H[np.searchsorted(breaks_H, value_K, side="right")]

    @cached_property
    def hull(self) -> tuple[Floats, Floats]:
        """(values above which the next bid is best, the best bids): the upper hull of lines ``W v - b W`` in v."""
        slopes = [0.0]
        bids = [0.0]
        breaks: list[float] = []
        for bid, slope in zip(self.bid_G.tolist(), self.win_G.tolist(), strict=True):
            if slope <= slopes[-1]:
                continue
            while True:
                crossing = (slope * bid - slopes[-1] * bids[-1]) / (slope - slopes[-1])
                if not breaks or crossing > breaks[-1]:
                    break
                breaks.pop()
                slopes.pop()
                bids.pop()
            breaks.append(crossing)
            slopes.append(slope)
            bids.append(bid)
        return np.array(breaks), np.array(bids)


Fit = Callable[[Feedback, Floats], WinCurve]  # second argument: the grid of bids


@dataclass(frozen=True)
class WinCurves:
    """A win curve for each group of values, in ascending order; ``edges`` are the values between the groups.

    Competitors value the same impressions, so prices rise with the own value: one curve for all would overbid for
    impressions of low value and underbid for those of high value.
    """

    edges: Floats
    curves: tuple[WinCurve, ...]

    def shade(self, value_K: Floats) -> Floats:
        """[K] `WinCurve.shade` by the curve of each value's group."""
        group_K = np.searchsorted(self.edges, value_K, side="right")
        shaded_K = np.zeros(len(value_K))
        for group in np.unique(group_K).tolist():
            is_in_K = group_K == group
            shaded_K[is_in_K] = self.curves[group].shade(value_K[is_in_K])
        return shaded_K


def fit_by_value(fit: Fit, feedback: Feedback, value_N: Floats, groups: int, points: int = GRID_POINTS) -> WinCurves:
    """A law of the price for each of so many groups of equal size, by the value of the impression to the bidder.

    ``value_N`` is the value before pacing, which does not change with the own multiplier. Each group has a grid of bids
    of its own.
    """
    edges = np.unique(np.quantile(value_N, np.linspace(0, 1, groups + 1)[1:-1]))
    group_N = np.searchsorted(edges, value_N, side="right")
    curves = []
    for group in range(len(edges) + 1):
        part_N = group_N == group
        if not part_N.any():
            part_N = np.ones_like(part_N)
        part = feedback.of(part_N)
        curves.append(fit(part, grid(part, value_N[part_N], points)))
    return WinCurves(edges, tuple(curves))


def grid(feedback: Feedback, value_N: Floats, points: int = GRID_POINTS) -> Floats:
    """[G] bids, at most ``points``, ascending, for the law of prices of impressions of these values.

    Half of them are in equal ratios, from the lower quantile `TAIL` of the values over `MAX_SHADING` to the upper one:
    a law without reported prices is interpolated, and bids below all past ones are tried. The others are at quantiles
    of the bounds of prices. So a few amounts, however far off, take few of the bids. Amounts that are 0 or infinite
    bound nothing.
    """
    value_N = value_N[(value_N > 0) & np.isfinite(value_N)]
    bound_N = np.concatenate((feedback.low_N, feedback.high_N))
    bound_N = bound_N[(bound_N > 0) & np.isfinite(bound_N)]
    bids = [np.ones(1)]
    if len(value_N):
        low, high = np.quantile(value_N, (TAIL, 1 - TAIL), method="nearest")
        bids = [np.geomspace(low / MAX_SHADING, high, points // 2)]
    if len(bound_N):
        bids.append(np.quantile(bound_N, np.linspace(0, 1, points // 2), method="nearest"))
    return np.unique(np.concatenate(bids))


def fit_histogram(
    feedback: Feedback, bid_G: Floats, prior: WinCurve | None = None, prior_count: float = 0.0
) -> WinCurve:
    """Non-parametric law of the price, on a grid: each auction spreads over the bins that its interval permits.

    It starts from equal mass in equal ratios, which thus is the law within an interval of which nothing is known.
    ``prior`` on the same grid counts as ``prior_count`` auctions with known prices. Prices above the grid share a bin.
    """
    bins = len(bid_G) + 1
    first_N = np.searchsorted(bid_G, feedback.low_N, side="left")  # bin g: above bid g - 1, at most bid g
    last_N = np.minimum(np.searchsorted(bid_G, feedback.high_N, side="left"), bins - 1)
    is_open_N = feedback.low_N < feedback.high_N
    first_N = np.minimum(np.where(is_open_N, np.searchsorted(bid_G, feedback.low_N, side="right"), first_N), last_N)
    pairs, counts = np.unique(first_N * bins + last_N, return_counts=True)
    first_P = pairs // bins
    last_P = pairs % bins
    base_G = np.zeros(bins)
    if prior is not None:
        base_G = prior_count * np.diff(np.concatenate(([0.0], prior.win_G, [1.0])))
    total = len(feedback.bid_N) + base_G.sum()
    ratio_G = np.diff(np.log(bid_G)) if len(bid_G) > 1 else np.ones(1)
    mass_G = np.concatenate(([ratio_G.mean()], ratio_G, [ratio_G.mean()]))[:bins] / ratio_G.sum()
    for _ in range(ITERATIONS):
        below_G = np.append(0.0, np.cumsum(mass_G))
        share_P = counts / np.maximum(below_G[last_P + 1] - below_G[first_P], 1e-300)
        spread_G = np.cumsum(
            np.bincount(first_P, share_P, bins + 1)[:bins] - np.bincount(last_P + 1, share_P, bins + 1)[:bins]
        )
        updated_G = (base_G + mass_G * np.maximum(spread_G, 0.0)) / total
        change = np.abs(updated_G - mass_G).max()
        mass_G = updated_G
        if change < TOLERANCE:
            break
    return WinCurve(bid_G, np.minimum(np.cumsum(mass_G)[:-1], 1.0))


def fit_log_normal(feedback: Feedback, bid_G: Floats) -> WinCurve:
    """Log-normal law of the price, by EM over the intervals.

    An auction lost without a bid (0) and without a price permits any price: it takes no part.
    """
    feedback = feedback.of((feedback.low_N > 0) | np.isfinite(feedback.high_N))
    is_known_N = feedback.low_N == feedback.high_N
    least = bid_G[0] if is_known_N.any() else 1e-300  # a price below all bids of the grid counts as the lowest of them
    low_N = np.log(np.maximum(feedback.low_N, least))
    high_N = np.log(np.maximum(feedback.high_N, least))
    start_N = np.where(is_known_N, low_N, np.log(np.maximum(feedback.bid_N, least)))
    mean = float(start_N.mean())
    sigma = max(float(start_N.std()), 0.5)
    for _ in range(ITERATIONS):
        low_z = (low_N - mean) / sigma
        high_z = (high_N - mean) / sigma
        mass = np.maximum(ndtr(high_z) - ndtr(low_z), 1e-12)
        low_d = _density(low_z)
        high_d = _density(high_z)
        first_N = np.where(is_known_N, start_N, mean + sigma * (low_d - high_d) / mass)
        spread = (_finite(low_z) * low_d - _finite(high_z) * high_d) / mass
        second_N = np.where(is_known_N, start_N**2, sigma**2 * (1 + spread) + 2 * mean * first_N - mean**2)
        updated = float(first_N.mean())
        updated_sigma = max(float(np.sqrt(max(second_N.mean() - updated**2, 0.0))), MIN_SIGMA)
        change = abs(updated - mean) + abs(updated_sigma - sigma)
        mean = updated
        sigma = updated_sigma
        if change < TOLERANCE:
            break
    return WinCurve(bid_G, ndtr((np.log(bid_G) - mean) / sigma))


def fit_logistic(feedback: Feedback, bid_G: Floats, ridge: float = 1e-3) -> WinCurve:
    """Win rate ``sigmoid(a + c log bid)``, c > 0, by Newton steps on wins and losses; prices are not read.

    Auctions without a bid (0) take no part.
    """
    feedback = feedback.of(feedback.bid_N > 0)
    log_bid_N = np.log(feedback.bid_N)
    center = float(log_bid_N.mean())
    x_ND = np.column_stack([np.ones_like(log_bid_N), log_bid_N - center])
    weight_D = np.array([0.0, 1.0])
    for _ in range(ITERATIONS):
        win_N = expit(x_ND @ weight_D)
        gradient_D = x_ND.T @ (win_N - feedback.won_N) + ridge * weight_D
        curvature_DD = (x_ND * (win_N * (1 - win_N))[:, None]).T @ x_ND + ridge * np.eye(2)
        step_D = np.linalg.solve(curvature_DD, gradient_D)
        weight_D = weight_D - step_D * min(1.0, 4.0 / max(float(np.abs(step_D).max()), 1e-12))
        if np.abs(step_D).max() < TOLERANCE:
            break
    slope = max(float(weight_D[1]), MIN_SIGMA)
    return WinCurve(bid_G, expit(weight_D[0] + slope * (np.log(bid_G) - center)))


def explore(
    value_K: Floats, shaded_K: Floats, share: float, draws_K: Floats, places_K: Floats
) -> tuple[Floats, Floats]:
    """[K] bids of which a ``share`` is drawn, and the propensity of each.

    A drawn bid is log-uniform in `SHADED_BY_AT_MOST` x value to value; its propensity is a density over bids. That of
    the others is the probability ``1 - share``. ``draws_K`` and ``places_K`` are uniform in [0, 1).
    """
    assert 0 <= share < 1, share
    is_drawn_K = draws_K < share
    drawn_K, density_K = drawn(value_K, share, places_K)
    return np.where(is_drawn_K, drawn_K, shaded_K), np.where(is_drawn_K, density_K, 1.0 - share)


def drawn(value: Number, share: float, place: Number) -> tuple[Number, Number]:
    """(bid, density) at a uniform ``place`` in [0, 1), where a ``share`` of the bids is drawn."""
    bid = value * SHADED_BY_AT_MOST ** (1.0 - place)
    return bid, share / (bid * _LOG_RANGE)


def _density(z: Floats) -> Floats:
    density: Floats = np.exp(-(np.minimum(np.abs(z), 40.0) ** 2) / 2) / np.sqrt(2 * np.pi)
    return density


def _finite(z: Floats) -> Floats:
    return np.clip(z, -40.0, 40.0)
