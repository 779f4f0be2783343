"""Fitted counts networks on disk and in memory: that of all users, and one for each fold of users without them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadre.data.moment import Moment
from leadre.lm import counts
from leadre.lm.counts import CountsNetwork

FOLDER = "counts"  # of the learnt prior, in the artifact of a model
FOLDS = 2


@dataclass(frozen=True, kw_only=True)
class CountsNetworks:
    """The network of all users, and those at ``user % FOLDS`` that have not seen the user, with earlier tables."""

    full: CountsNetwork
    held_out: tuple[CountsNetwork, ...]

    @property
    def from_us(self) -> int:
        """The first time of training visits that the networks of ``held_out`` may score."""
        return self.held_out[0].tables.before_us

    def network(self, moment: Moment) -> CountsNetwork:
        """The network that has seen neither the answer of a visit nor, in training, its user."""
        return self.held_out[moment.user % len(self.held_out)] if moment.is_training else self.full

    def save(self, folder: Path) -> None:
        """Write all networks: that of all users in ``folder``, the others in sub-folders."""
        parts = {folder: self.full} | {folder / f"fold-{fold}": part for fold, part in enumerate(self.held_out)}
        for own, network in parts.items():
            own.mkdir(exist_ok=True)
            network.save(own)


def load(folder: Path) -> CountsNetworks:
    """The networks that `CountsNetworks.save` wrote."""
    held_out = tuple(counts.load(folder / f"fold-{fold}") for fold in range(FOLDS))
    return CountsNetworks(full=counts.load(folder), held_out=held_out)
