"""The prior over live objects: tries of the live inventory, weighted for one user. Training and serving share it.

The weight of a live object is its response rate, or the probability that the counts network gives it for this user
(`lm.counts_fit`); times the user's affinity and a power of the price if the model was tuned with them. The model's
scores are added to the logarithm of the prior, so a model without information answers with the prior and learns only
how a user departs from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from leadre.data.counts import smoothed
from leadre.data.histories import TRAIN, Logs
from leadre.data.moment import LiveInventory, Moment
from leadre.data.prices import object_prices, own_log_prices
from leadre.lm.affinity import Affinity
from leadre.lm.counts_networks import CountsNetworks
from leadre.semid.codebook import Codebook
from leadre.semid.trie import Trie, build, code_type, weighed, without

AFFINITY = 0.6  # what one standard deviation of affinity adds to a log-weight; best of six on the validation weeks


class PriceExponents(NamedTuple):
    """Powers of the price in an object's weight: in the pointer, and in the prior."""

    pointer: float
    prior: float


NO_PRICE_EXPONENTS = PriceExponents(0.0, 0.0)


class InventoryPrior:
    """Weighted tries over the objects that are live at a moment. Objects are indices into those of ``logs``.

    ``prior`` weighs the objects by their `response_rates` and, if given, by the user's ``affinity``; training moments
    use the fits in ``held_out`` (`affinity.held_out`) instead. ``learnt`` weighs them by the counts network instead.
    Without ``prior`` all live codes have equal weight.
    ``money`` adds powers of the price, to the prior and to the pointer (`pointer_bias`); prices end at ``now_us``
    if that is before the end of training time.
    """

    def __init__(
        self,
        logs: Logs,
        codebook: Codebook,
        *,
        prior: bool = True,
        affinity: Affinity | None = None,
        held_out: Sequence[Affinity] = (),
        learnt: CountsNetworks | None = None,
        money: PriceExponents = NO_PRICE_EXPONENTS,
        now_us: int | None = None,
    ) -> None:
        self.affinity = affinity
        self.held_out = held_out
        self.learnt = learnt
        # affinity ranks objects that are new to the user well, so the rates leave out repeats
        self.rates_O = response_rates(logs, new_only=affinity is not None) if prior else None
        self.money = money
        self.log_price_O = None if money == NO_PRICE_EXPONENTS else np.log(object_prices(logs, now_us))
        self.value_O: NDArray[np.float64] | None = None
        if self.log_price_O is not None:
            self.typical = float(np.median(self.log_price_O))
            self.value_O = np.exp(money.prior * (self.log_price_O - self.typical))
            self.rates_O = self.value_O * (1.0 if self.rates_O is None else self.rates_O)
        self.rows_O = codebook.rows(logs.objects["object_id"].to_list())
        self.codes_OL = codebook.codes_OL[self.rows_O]
        self.sizes = codebook.sizes
        self._compact_OL = self.codes_OL.astype(code_type(self.sizes))  # to build tries of; a gather costs a quarter
        self._latest: tuple[Moment, Trie] | None = None  # callers want both views of a moment, one after the other
        self._tries = WeakKeyDictionary[LiveInventory, Trie]()  # of inventories that are in use elsewhere

    def all(self, moment: Moment) -> tuple[Trie, NDArray[np.int64]]:
        """(trie, objects): the live objects; row ``n`` of the trie is object ``objects[n]``."""
        objects = moment.inventory.objects
        latest = self._latest
        if latest is not None and latest[0] is moment:
            return latest[1], objects
        trie = self._of_inventory(moment.inventory)
        weights = self.weights(moment, objects) if self.differs_by_user else None
        if weights is not None:
            trie = weighed(trie, weights)
            self._latest = moment, trie
        return trie, objects

    def new(self, moment: Moment) -> tuple[Trie, NDArray[np.int64]]:
        """The same without the objects of the user's history (prospecting)."""
        trie, objects = self.all(moment)
        had = np.unique(moment.history.object_E).astype(np.int64)
        rows = np.searchsorted(objects, had)
        is_live = rows < len(objects)
        rows = rows[is_live][objects[rows[is_live]] == had[is_live]]
        return without(trie, rows), np.delete(objects, rows)

    def weights(self, moment: Moment, objects: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Prior weight of each of ``objects`` for this user, not normalised; None: all equal."""
        if self.learnt is not None:
            return self._learnt_weights(self.learnt, moment, objects)
        if self.rates_O is None:
            return None
        weights = self.rates_O[objects]
        affinity = self._affinity(moment)
        if affinity is not None:
            rows_E = self.rows_O[moment.history.object_E]
            weights = weights * np.exp(AFFINITY * affinity.scores(rows_E, self.rows_O[objects]))
        return weights

    def _learnt_weights(
        self, learnt: CountsNetworks, moment: Moment, objects: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        network = learnt.network(moment)
        is_earlier = moment.is_training and moment.at_us < network.tables.before_us
        assert not is_earlier, "the prior's counts hold events of the visit's own time"
        scores = network.scores(moment, objects).astype(np.float64)
        weights: NDArray[np.float64] = np.exp(scores - scores.max(initial=-np.inf))
        return weights if self.value_O is None else weights * self.value_O[objects]

    def pointer_bias(self, moment: Moment, objects_T: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The logarithm of the pointer's weight of each position of a thread, by price; None = all equal.

        ``objects_T`` are the objects at the positions, below zero = none. The weight is the price to the power
        ``money.pointer``: the price that this user usually pays for the object, if they have paid for it.
        """
        if self.log_price_O is None:
            return None
        paid, own_log_price = own_log_prices(moment.history, self.log_price_O)
        price_T = self.log_price_O[objects_T.clip(0)]
        if len(paid):
            row_T = np.searchsorted(paid, objects_T).clip(max=len(paid) - 1)
            price_T = np.where(paid[row_T] == objects_T, own_log_price[row_T], price_T)
        return np.where(objects_T >= 0, self.money.pointer * (price_T - self.typical), 0).astype(np.float32)

    def _of_inventory(self, inventory: LiveInventory) -> Trie:
        """The trie that all moments with this inventory share; without weights if these differ by user."""
        trie = self._tries.get(inventory)
        if trie is None:
            objects = inventory.objects
            weights = None if self.rates_O is None or self.differs_by_user else self.rates_O[objects]
            trie = build(self._compact_OL[objects], self.sizes, weights)
            self._tries[inventory] = trie
        return trie

    @property
    def differs_by_user(self) -> bool:
        """Whether the weights of an inventory depend on the moment."""
        return self.affinity is not None or bool(self.held_out) or self.learnt is not None

    @property
    def from_us(self) -> int:
        """The first time of training moments that may be answered: counts of the prior end before it."""
        return 0 if self.learnt is None else self.learnt.from_us

    def _affinity(self, moment: Moment) -> Affinity | None:
        if self.held_out and moment.is_training:
            return self.held_out[moment.user % len(self.held_out)]
        return self.affinity


def response_rates(logs: Logs, *, new_only: bool = False) -> NDArray[np.float64]:
    """The response rate of each object: float64 [O], all > 0.

    Actions on the object per training request in which it was live, smoothed; ``new_only`` leaves out requests of users
    with the object in their history. An object that was never live, such as that of a new ad, gets the mean rate.
    """
    count = len(logs.objects)
    live_O = np.zeros(count)
    acted_O = np.zeros(count)
    left_out_O = np.zeros(count, np.bool_)
    for r in logs.requests_of(TRAIN).tolist():
        history = logs.object_E[logs.history(r)] if new_only else np.zeros(0, np.int32)
        left_out_O[history] = True
        for counts_O, ads in ((live_O, logs.inventory(r)), (acted_O, logs.relevant(r)[0])):
            objects = logs.ad_object_A[ads]
            counts_O[objects[~left_out_O[objects]]] += 1  # an index that repeats counts once
        left_out_O[history] = False
    return smoothed(acted_O, live_O)
