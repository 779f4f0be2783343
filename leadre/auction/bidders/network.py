"""RLB's value network for large states (Cai et al., arXiv 1701.02490), a compared variant: see docs/bidding.md.

Only the slope D(n, b) = V(n, b + 1) - V(n, b) of the value decides a bid: the best one is the highest a whose sum of D
over the money from b - a to b is at most the gain of the auction. A small network of (n, b, b / n) learns D from the
rows of a table; the first `EXACT` auctions from the end stay exact. It needs PyTorch, to fit and not to bid, so it is
not in the registry.

Letters: S states, A bids from 0 to the highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from leadre.auction.bidders.contract import Fixed, Floats, History

EXACT = 50
HIDDEN = (30, 15)
BATCH = 1_024
LEARNING_RATE = 3e-3


@dataclass(frozen=True, eq=False)
class SlopeNetwork:
    """D in units of the mean pCTR, at least 0. ``auctions``, ``money``: of the table, the scale of the inputs."""

    layers: Sequence[tuple[Floats, Floats]]
    auctions: int
    money: float

    def slope(self, n: float, money_S: Floats) -> Floats:
        """[S] D with n auctions left."""
        x_SD = self.inputs(np.full(len(money_S), float(n)), money_S)
        for weight_ED, bias_E in self.layers[:-1]:
            x_SD = np.tanh(x_SD @ weight_ED.T + bias_E)
        weight_ED, bias_E = self.layers[-1]
        slope_S: Floats = np.maximum((x_SD @ weight_ED.T + bias_E)[:, 0], 0.0)
        return slope_S

    def inputs(self, n_S: Floats, money_S: Floats) -> Floats:
        """[S, 3] auctions left, money left, and the logarithm of money an auction, each scaled to about 1."""
        rate = self.money / self.auctions
        quotient_S = np.log((money_S + 1.0) / n_S / rate) / 3.0
        return np.column_stack([n_S / self.auctions, money_S / self.money, quotient_S])


def fit(value_NB: Floats, steps: int, seed: int = 0) -> SlopeNetwork:
    """Fit the network to the rows of a table beyond `EXACT`, by Adam with a rate that falls to 0. Squared errors."""
    auctions = len(value_NB) - 1
    network = SlopeNetwork((), auctions, float(value_NB.shape[1] - 1))
    slope_NB = np.diff(value_NB, axis=1)
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    sizes = (3, *HIDDEN)
    hidden = [[torch.nn.Linear(*pair), torch.nn.Tanh()] for pair in pairwise(sizes)]
    model = torch.nn.Sequential(*(layer for pair in hidden for layer in pair), torch.nn.Linear(sizes[-1], 1))
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        n_S = generator.integers(min(EXACT, auctions - 1) + 1, auctions + 1, BATCH)
        money_S = generator.integers(0, slope_NB.shape[1], BATCH)
        x_SD = torch.from_numpy(network.inputs(n_S.astype(float), money_S.astype(float))).float()
        slope_S = torch.from_numpy(slope_NB[n_S, money_S]).float()
        loss = ((model(x_SD)[:, 0] - slope_S) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    arrays = [parameter.detach().double().numpy() for parameter in model.parameters()]
    return SlopeNetwork(tuple(zip(arrays[::2], arrays[1::2], strict=True)), auctions, network.money)


@dataclass(frozen=True, eq=False)
class NetworkRLB(Fixed):
    """The best bid by the network. ``exact_NB``: rows 0 to `EXACT` of the table.

    Horizons beyond the network's are mapped to its last one at the same money an auction; the slope is the same there.
    """

    history: History
    network: SlopeNetwork
    exact_NB: Floats

    def bid(self, left: float, n: int, pctr: float) -> float:
        money = int(left)
        cap = min(money, self.history.cap)
        if cap <= 0:
            return 0.0
        cost_A = np.cumsum(self._slopes(n - 1, np.arange(money - 1, money - cap - 1, -1)))
        return float(np.searchsorted(cost_A, pctr / self.history.mean_pctr, side="right"))

    def _slopes(self, n: int, money_A: NDArray[np.int64]) -> Floats:
        most = self.exact_NB.shape[1] - 2
        if n < len(self.exact_NB):
            row_B = np.diff(self.exact_NB[n])
            slope_A: Floats = row_B[np.minimum(money_A, most)]
            return slope_A
        scale = min(1.0, self.network.auctions / n)
        return self.network.slope(n * scale, np.minimum(money_A * scale, self.network.money))
