"""Belief propagation: probabilities of the labels of rows that agree with the sums of bags and among neighbours.

p(y) ~ prod over bags [sum of y = Y] x prod over pairs of neighbours exp(-a k (y_i - y_j)^2 - c (y_i + y_j)) for labels
y of 0 and 1, where k is the kernel of the pair and a the agreement: the law of Havaldar et al. (ICLR 2024, arXiv
2310.08056) with three deviations.

- They punish a wrong sum by its square, which is a pair of messages for each two rows of a bag. Here a bag is one
  factor that allows the known sum alone, and its messages are exact in n min(Y, n - Y) steps for n rows.
- Their c is 0. At a low rate all rows send "no action" then, and a row with many neighbours gets little of the sum of
  its bag for that reason alone. With our c a neighbour with the log-odds of the rate sends nothing.
- Messages stop when they no longer change.

A message of the count factor to row i is log P(Y - 1 of the others) - log P(Y of the others), where the others are
independent with the log-odds of their own messages. Both probabilities come from a running sum from either end (a
Poisson-binomial distribution). Log-odds are shifted first, so that the expected sum is Y. The shift cancels in the law
of a known sum, and all terms are positive and far from underflow. Marginals are exact on a factor graph without cycles.

Letters: N rows, B bags, G bags of a group, L rows of a bag, padded, S sums from 0 to the largest Y, E edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from leadre.rank.proportions.bags import BagRows
from leadre.rank.proportions.neighbours import Graph

Floats = NDArray[np.float64]
I64 = NDArray[np.int64]

CERTAIN = 200.0  # log-odds of a row whose label is known, as no other message outweighs it
SURE = 30.0  # log-odds above which a message to a neighbour does not change
MAX_CELLS = 4_000_000  # of the running sums of a group of bags
BISECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """``agreement`` of the pairs of neighbours; ``is_neutral``: a neighbour at the rate of all rows sends nothing.

    Messages move by ``1 - damping`` of their change. They stop after ``rounds``, or when no belief changes by more than
    ``tolerance`` in log-odds.
    """

    agreement: float = 0.3
    is_neutral: bool = True
    damping: float = 0.5
    rounds: int = 20
    tolerance: float = 0.03


def marginals(rows: BagRows, graph: Graph, options: Propagation) -> Floats:
    """The probability [N] of an action in each row."""
    groups = list(_groups(rows))
    first = graph.first_E
    second = graph.second_E
    tanh_E = np.tanh(options.agreement * graph.kernel_E / 2)
    unary_E = _neutral_unary(options.agreement * graph.kernel_E, rows.rate) if options.is_neutral else 0.0
    to_first_E = np.zeros(len(first))
    to_second_E = np.zeros(len(first))
    near_N = np.zeros(len(rows.bag_N))
    count_N = _count_messages(groups, near_N)
    for _ in range(options.rounds):
        belief_N = near_N + count_N
        from_first_E = _pair_message(tanh_E, belief_N[first] - to_first_E - unary_E) - unary_E
        from_second_E = _pair_message(tanh_E, belief_N[second] - to_second_E - unary_E) - unary_E
        step = 1 - options.damping
        to_second_E += step * (from_first_E - to_second_E)
        to_first_E += step * (from_second_E - to_first_E)
        near_N = _sums(first, to_first_E, len(near_N)) + _sums(second, to_second_E, len(near_N))
        count_N += step * (_count_messages(groups, near_N) - count_N)
        if np.abs(near_N + count_N - belief_N).max(initial=0) < options.tolerance:
            break
    marginal_N: Floats = expit(near_N + count_N)
    return marginal_N


def likeliest(rows: BagRows, marginal_N: Floats) -> Floats:
    """Labels [N] of 0 and 1: in each bag the Y rows of the highest marginals have an action."""
    order_N = np.lexsort((-marginal_N, rows.bag_N))
    size_B = rows.size_B
    place_N = np.arange(len(order_N)) - np.repeat(np.cumsum(size_B) - size_B, size_B)
    label_N = np.zeros(len(order_N))
    label_N[order_N] = place_N < np.repeat(rows.sum_B, size_B)
    return label_N


def _sums(row_E: I64, message_E: Floats, rows: int) -> Floats:
    """Sum of the messages of each row."""
    return np.asarray(np.bincount(row_E, message_E, rows), np.float64)


def _pair_message(tanh_E: Floats, cavity_E: Floats | float) -> Floats:
    """Log-odds that a row with log-odds ``cavity_E`` sends to its neighbour; ``tanh_E``: of half the coupling."""
    return 2 * np.arctanh(tanh_E * np.tanh(np.clip(cavity_E, -SURE, SURE) / 2))


def _neutral_unary(coupling_E: Floats, rate: float) -> Floats:
    """The c of each pair with which a row at the log-odds of the rate sends 0.

    log((u + e^-k) / (u e^-k + 1)) = c for u = odds e^-c is a quadratic equation of u.
    """
    odds = rate / (1 - rate) if 0 < rate < 1 else 1.0
    linear_E = np.exp(-coupling_E) * (1 - odds)
    return np.log(2 * odds / (np.sqrt(linear_E**2 + 4 * odds) - linear_E))


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Bags of like size. ``row_GL``: their rows; ``is_row_GL`` is False at padding.

    ``sum_G``: their actions, or where ``is_flipped_G`` their rows without an action, which are fewer.
    """

    row_GL: I64
    is_row_GL: NDArray[np.bool_]
    sum_G: I64
    is_flipped_G: NDArray[np.bool_]


def _groups(rows: BagRows) -> Iterator[_Group]:
    """All bags, each in one group."""
    size_B = rows.size_B
    order_N = np.argsort(rows.bag_N, kind="stable")
    start_B = np.cumsum(size_B) - size_B
    is_flipped_B = 2 * rows.sum_B > size_B
    few_B = np.where(is_flipped_B, size_B - rows.sum_B, rows.sum_B)
    in_order = np.lexsort((few_B, size_B))
    first = 0
    while first < len(in_order):
        # The last bag of a group is its largest; sums may be larger before it, so a group ends where the size grows.
        last = first + 1
        most = few_B[in_order[first]]
        while last < len(in_order):
            size = size_B[in_order[last]]
            most = max(most, few_B[in_order[last]])
            if (last + 1 - first) * size * (most + 1) > MAX_CELLS or size > 1.2 * size_B[in_order[first]]:
                break
            last += 1
        chosen = in_order[first:last]
        place_L = np.arange(size_B[chosen].max())
        is_row_GL = place_L < size_B[chosen, None]
        yield _Group(
            row_GL=order_N[np.where(is_row_GL, start_B[chosen, None] + place_L, 0)],
            is_row_GL=is_row_GL,
            sum_G=few_B[chosen],
            is_flipped_G=is_flipped_B[chosen],
        )
        first = last


def _count_messages(groups: list[_Group], log_odds_N: Floats) -> Floats:
    """Messages [N] of the count factors, whose rows have log-odds of their other messages."""
    message_N = np.zeros(len(log_odds_N))
    for group in groups:
        sign_G1 = np.where(group.is_flipped_G, -1.0, 1.0)[:, None]
        log_odds_GL = np.where(group.is_row_GL, sign_G1 * log_odds_N[group.row_GL], -np.inf)
        message_GL = sign_G1 * count_messages(log_odds_GL, group.sum_G)
        message_N[group.row_GL[group.is_row_GL]] = message_GL[group.is_row_GL]
    return message_N


def count_messages(log_odds_GL: Floats, sum_G: I64) -> Floats:
    """Messages [G, L] of factors that allow ``sum_G`` actions among rows with the log-odds of their other messages.

    Padding has log-odds of -inf, and its messages have no meaning. All messages are within 2 x `CERTAIN`.
    """
    shift_G1 = _shift(log_odds_GL, sum_G)[:, None]
    shifted_LG1 = (log_odds_GL + shift_G1).clip(-CERTAIN, CERTAIN).T[:, :, None]
    is_row_LG1 = np.isfinite(log_odds_GL).T[:, :, None]
    p_LG1 = np.where(is_row_LG1, expit(shifted_LG1), 0.0)
    q_LG1 = np.where(is_row_LG1, expit(-shifted_LG1), 1.0)  # 1 - p would be 0 at large log-odds
    bags, rows = log_odds_GL.shape
    before_LGS = np.zeros((rows, bags, int(sum_G.max(initial=0)) + 1))  # P(sum of the rows before one)
    before_LGS[0, :, 0] = 1
    for i in range(rows - 1):
        before_LGS[i + 1] = before_LGS[i] * q_LG1[i]
        before_LGS[i + 1, :, 1:] += before_LGS[i, :, :-1] * p_LG1[i]
    after_GS = np.zeros(before_LGS.shape[1:])  # P(the rows after one complete a sum of those before it to Y)
    after_GS[np.arange(bags), sum_G] = 1
    message_GL = np.empty((bags, rows))
    with np.errstate(divide="ignore"):
        for i in reversed(range(rows)):
            without_G = (before_LGS[i] * after_GS).sum(1)
            with_G = (before_LGS[i, :, :-1] * after_GS[:, 1:]).sum(1)
            message_GL[:, i] = np.log(with_G) - np.log(without_G)
            ahead_GS = after_GS[:, 1:] * p_LG1[i]
            after_GS *= q_LG1[i]
            after_GS[:, :-1] += ahead_GS
    message_GL = np.where(sum_G[:, None] == 0, -2 * CERTAIN, message_GL + shift_G1)
    return message_GL.clip(-2 * CERTAIN, 2 * CERTAIN)


def _shift(log_odds_GL: Floats, sum_G: I64) -> Floats:
    """The number by which log-odds are shifted so that the expected sum is about ``sum_G``; 0 for sums of 0 or all."""
    is_row_GL = np.isfinite(log_odds_GL)
    size_G = is_row_GL.sum(1)
    is_open_G = (sum_G > 0) & (sum_G < size_G)
    share_G = np.where(is_open_G, sum_G / np.maximum(size_G, 1), 0.5)
    low_G = logit(share_G) - np.max(log_odds_GL, axis=1, where=is_row_GL, initial=-CERTAIN)
    high_G = logit(share_G) - np.min(log_odds_GL, axis=1, where=is_row_GL, initial=CERTAIN)
    for _ in range(BISECTIONS):
        middle_G = (low_G + high_G) / 2
        is_below_G = expit(log_odds_GL + middle_G[:, None]).sum(1) < sum_G
        low_G = np.where(is_below_G, middle_G, low_G)
        high_G = np.where(is_below_G, high_G, middle_G)
    return np.where(is_open_G, (low_G + high_G) / 2, 0.0)
