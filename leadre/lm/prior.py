"""The live inventory of a request as a trie. Training and serving ask here, so both mask with the same code.

Each live object weighs in with how often it was acted on when it was live and, where asked for, with how well it goes
with what this user acted on before. A model whose scores say nothing answers with that, and a model has only to learn
where a user departs from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import TRAIN, Logs
from leadre.data.prices import object_prices, own_log_prices
from leadre.lm.affinity import Affinity
from leadre.semid.codebook import Codebook
from leadre.semid.trie import Trie, build

CACHED = 1024  # inventories
PSEUDO_ACTIONS = 2.0  # an object seldom live is drawn to the mean rate as if it had been acted on twice more
AFFINITY = 0.6  # what one standard deviation of affinity adds to a log-weight; best of six on validation weeks


class PriceExponents(NamedTuple):
    """Powers of its price to which an object weighs in: with the pointer, and in the prior."""

    pointer: float
    prior: float


NO_PRICE_EXPONENTS = PriceExponents(0.0, 0.0)


class InventoryPrior:
    """Tries over the objects live in the requests of one log. Rows of a trie are indices into ``objects``.

    ``prior`` weighs the objects by their `response_rates` and, where given, by the user's ``affinity``, in training
    requests by those ``held_out`` (`affinity.held_out`); without it every live code starts alike. ``money`` says how
    much prices weigh in beside that, and with the pointer (`pointer_bias`).
    """

    def __init__(
        self,
        logs: Logs,
        codebook: Codebook,
        *,
        prior: bool = True,
        affinity: Affinity | None = None,
        held_out: Sequence[Affinity] = (),
        money: PriceExponents = NO_PRICE_EXPONENTS,
    ) -> None:
        self.logs, self.affinity, self.held_out = logs, affinity, held_out
        # what an affinity is good at is telling strangers apart
        self.rates_O = response_rates(logs, new_only=affinity is not None) if prior else None
        self.money, self.log_price_O = money, np.log(object_prices(logs)) if money != NO_PRICE_EXPONENTS else None
        if self.log_price_O is not None:
            self.typical = float(np.median(self.log_price_O))
            worth_O = np.exp(money.prior * (self.log_price_O - self.typical))
            self.rates_O = worth_O * (1.0 if self.rates_O is None else self.rates_O)
        self.rows_O = codebook.rows(logs.objects["object_id"].to_list())
        self.codes_OL = codebook.codes_OL[self.rows_O]
        self.sizes = codebook.sizes
        self._objects = lru_cache(maxsize=CACHED)(lambda inventory: _objects(logs, inventory))
        self._shared = lru_cache(maxsize=CACHED)(self._of_inventory)

    def all(self, r: int) -> tuple[Trie, NDArray[np.int64]]:
        """(trie, objects): what is live in request ``r``; row ``n`` of the trie is object ``objects[n]``."""
        objects = self.objects(r)
        if self._affinity(r) is None:
            return self._shared(int(self.logs.request_inventory_R[r])), objects
        return self._trie(r, objects), objects

    def new(self, r: int) -> tuple[Trie, NDArray[np.int64]]:
        """The same without the objects that the user has in the log strictly before the request (prospecting)."""
        objects = np.setdiff1d(self.objects(r), self.logs.object_E[self.logs.history(r)])
        return self._trie(r, objects), objects

    def objects(self, r: int) -> NDArray[np.int64]:
        """The objects live in request ``r``, ascending."""
        return self._objects(int(self.logs.request_inventory_R[r]))

    def weights(self, r: int, objects: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """How likely each of ``objects`` is in request ``r`` before the model is asked, in no unit; None: all alike."""
        if self.rates_O is None:
            return None
        weights, affinity = self.rates_O[objects], self._affinity(r)
        if affinity is not None:
            history = self.logs.object_E[self.logs.history(r)]
            weights = weights * np.exp(AFFINITY * affinity.scores(self.rows_O[history], self.rows_O[objects]))
        return weights

    def pointer_bias(
        self, r: int, objects_T: NDArray[np.int64], logs: Logs | None = None
    ) -> NDArray[np.float32] | None:
        """What the pointer counts each position of a thread for in request ``r``, as a logarithm; None = all alike.

        ``objects_T`` are the objects there, below zero = none. An object counts its price to the power
        ``money.pointer``: the price that this user usually pays, where they have paid for it, as one buys a can and
        another a crate.
        ``r`` is a request of ``logs`` where they are given, of the same objects.
        """
        if self.log_price_O is None:
            return None
        logs = logs or self.logs
        had, own = own_log_prices(logs, logs.history(r), self.log_price_O)
        price_T = self.log_price_O[objects_T.clip(0)]
        if len(had):
            place_T = np.searchsorted(had, objects_T).clip(max=len(had) - 1)
            price_T = np.where(had[place_T] == objects_T, own[place_T], price_T)
        return np.where(objects_T >= 0, self.money.pointer * (price_T - self.typical), 0).astype(np.float32)

    def _trie(self, r: int, objects: NDArray[np.int64]) -> Trie:
        return build(self.codes_OL[objects], self.sizes, self.weights(r, objects))

    def _of_inventory(self, inventory: int) -> Trie:
        """The trie of all requests that only their inventory tells apart."""
        objects = self._objects(inventory)
        return build(self.codes_OL[objects], self.sizes, None if self.rates_O is None else self.rates_O[objects])

    def _affinity(self, r: int) -> Affinity | None:
        if self.held_out and self.logs.request_split_R[r] == TRAIN:
            return self.held_out[int(self.logs.request_user_R[r]) % len(self.held_out)]
        return self.affinity


def _objects(logs: Logs, inventory: int) -> NDArray[np.int64]:
    """The objects of the ads in an inventory, ascending."""
    rows = slice(*logs.inventory_offsets[inventory : inventory + 2])
    return np.unique(logs.ad_object_A[logs.inventory_ads[rows]]).astype(np.int64)


def response_rates(logs: Logs, *, new_only: bool = False) -> NDArray[np.float64]:
    """How often an object was acted on: float64 [O], all > 0.

    Of the training requests in which it was live, the share in which it was acted on, smoothed; ``new_only`` leaves out
    the requests of users who had it before. An object that was never live, such as a new ad, gets the mean rate.
    """
    count = len(logs.objects)
    live_O, acted_O, left_out_O = np.zeros(count), np.zeros(count), np.zeros(count, np.bool_)
    inventories: dict[int, NDArray[np.int64]] = {}
    for r in logs.requests_of(TRAIN).tolist():
        inventory = int(logs.request_inventory_R[r])
        if inventory not in inventories:
            inventories[inventory] = _objects(logs, inventory)
        history = logs.object_E[logs.history(r)] if new_only else np.zeros(0, np.int32)
        left_out_O[history] = True
        acted = np.unique(logs.ad_object_A[logs.relevant(r)[0]])
        for counts_O, objects in ((live_O, inventories[inventory]), (acted_O, acted)):
            counts_O[objects[~left_out_O[objects]]] += 1
        left_out_O[history] = False
    mean = max(acted_O.sum(), 1.0) / max(live_O.sum(), 1.0)
    rates: NDArray[np.float64] = (acted_O + PSEUDO_ACTIONS) / (live_O + PSEUDO_ACTIONS / mean)
    return rates
