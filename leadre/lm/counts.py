"""The counts network: two hidden layers on the features of `data.counts`, softmax over the live objects.

It shows how far counts alone reach: an honest rival of a language model, and a candidate for its prior. Training fits
it forward in time: the tables of its training rows end before the first of these visits. The loss is the cross-entropy
of the objects acted on among all live objects, and again of the first-time ones among the live objects that are new to
the user. Scoring needs numpy alone, one pass of the network a request.

As a prior the network may read a sequence model as well: the log-probability that SASRec gives each live object. Both
are then mixed by two weights (`mixed`), since a network fitted on earlier time trusts the sequence model of that time.

Letters: V visits, N rows (a visit and one of its live objects), I live objects of a request, F features, H units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.nn import functional

from leadre import progress
from leadre.data import counts
from leadre.data.counts import CountTables, Floats
from leadre.data.histories import I32
from leadre.data.moment import Moment, history_of
from leadre.lm import nearby, sasrec
from leadre.lm.nearby import Nearby
from leadre.lm.sasrec import SasRec

FILE = "network.safetensors"
MAX_DEVIATION = 8.0  # standard deviations; a count far beyond those of training must not decide alone
MAX_ROWS_OF_A_VISIT = 512  # of a larger inventory, training draws the objects that were not acted on
WARM_UP = 50  # steps
MIXTURE_RIDGE = 10.0  # visits' worth of pull towards equal weights of network and sequence model


@dataclass(frozen=True, kw_only=True)
class Training:
    """Sizes and training of the network; the best on the validation weeks of the `journey` source (LOG.md)."""

    units: int = 64
    epochs: int = 6
    batch: int = 64  # visits
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    new_weight: float = 1.0  # weight of the loss among the objects new to the user
    power: float = 0.5  # a visit weighs its number of answers to this power


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Training visits; visit ``v`` has the rows ``offsets[v] : offsets[v + 1]``, one for each of its live objects.

    ``log_share_N``: logarithm of the number of live objects that a row represents, 0 unless rows were drawn.
    """

    x_NF: Floats
    offsets: NDArray[np.int64]  # [V + 1]
    acted_N: NDArray[np.bool_]
    new_N: NDArray[np.bool_]  # not in the user's history
    log_share_N: Floats

    def of(self, kept_V: NDArray[np.bool_]) -> Examples:
        """The examples of some visits."""
        size_V = np.diff(self.offsets)
        kept_N = np.repeat(kept_V, size_V)
        return Examples(
            x_NF=self.x_NF[kept_N],
            offsets=np.cumsum([0, *size_V[kept_V]]),
            acted_N=self.acted_N[kept_N],
            new_N=self.new_N[kept_N],
            log_share_N=self.log_share_N[kept_N],
        )


@dataclass(frozen=True, kw_only=True)
class CountsNetwork:
    """A fitted network: ``layers`` are weights [out, in] and biases [out], ``centre_F`` and ``scale_F`` of training.

    ``sequence``: the sequence model that it reads beside ``tables``, from events of the same time, if any. ``mixture``:
    weights of the network's own score and of the log-probability of the sequence model.
    """

    tables: CountTables
    sequence: SasRec | None = None
    centre_F: Floats
    scale_F: Floats
    layers: tuple[tuple[Floats, Floats], ...]
    mixture: tuple[float, float] = (1.0, 0.0)

    def scores(self, moment: Moment, objects: NDArray[np.int64] | None = None) -> Floats:
        """Unnormalised log-probability of live ``objects``, ascending, default all of the moment's inventory: [I].

        In an inventory of more than `nearby.LARGE` objects, those that are not near the history have the score of a
        user without one, plus a number that keeps their summed probability.
        """
        live = moment.inventory.objects
        if len(live) > nearby.LARGE:
            score_I = self._scores_by_nearby(moment)
            return score_I if objects is None else score_I[np.searchsorted(live, objects)]
        return self.forward(features(moment, self.tables, self.sequence, objects))

    def forward(self, x_IF: Floats) -> Floats:
        """Scores [I] of rows of `features`."""
        x_IH = standardise(x_IF, self.centre_F, self.scale_F)
        for weight, bias in self.layers[:-1]:
            x_IH = np.maximum(x_IH @ weight.T + bias, 0)
        weight, bias = self.layers[-1]
        score_I = (x_IH @ weight.T + bias)[:, 0]
        if self.sequence is not None:
            score_I = self.mixture[0] * score_I + self.mixture[1] * x_IF[:, -1]
        return np.asarray(score_I, dtype=np.float32)

    def warm_up(self) -> None:
        """Compute now the arrays of the catalogue that the first request of a large inventory would wait for."""
        if len(self.tables.popularity_OP) > nearby.LARGE:
            _ = self._base_O, self._nearby.spread, self._nearby.heads

    def _scores_by_nearby(self, moment: Moment) -> Floats:
        live = moment.inventory.objects
        user = self.tables.collaborative.user(moment.history)
        others = np.zeros(0, np.int64)
        log_p_I = None
        if self.sequence is not None:
            log_p_I = self.sequence.log_probabilities(moment, live)
            others = live[np.argpartition(-log_p_I, nearby.NEIGHBOURS)[: nearby.NEIGHBOURS]]
        near, is_probe_N = self._nearby.objects(moment, user, others)
        row_N = np.searchsorted(live, near)
        x_NF = counts.features(moment, self.tables, near, user=user, spread=self._nearby.spread)
        if log_p_I is not None:
            x_NF = np.column_stack([x_NF, log_p_I[row_N]])
        score_N = self.forward(x_NF)
        score_I = self._base_O[live]
        if is_probe_N.any():
            score_I += logsumexp(score_N[is_probe_N]) - logsumexp(score_I[row_N[is_probe_N]])
        score_I[row_N] = score_N
        return score_I

    @cached_property
    def _nearby(self) -> Nearby:
        return Nearby(tables=self.tables)

    @cached_property
    def _base_O(self) -> Floats:
        """Scores of all objects for a user without a history."""
        nobody = Moment(
            user=-1,
            profile={},
            at_us=self.tables.before_us,
            placement=-1,
            history=history_of([], 0),
            inventory=self._nearby.catalogue(),
        )
        return self.forward(features(nobody, self.tables, self.sequence))

    def save(self, folder: Path) -> None:
        """Write the tables, the sequence model and the weights."""
        self.tables.save(folder)
        if self.sequence is not None:
            self.sequence.save(folder)
        parts = {"centre_F": self.centre_F, "scale_F": self.scale_F, "mixture": np.array(self.mixture)}
        for number, (weight, bias) in enumerate(self.layers):
            parts |= {f"weight{number}": weight, f"bias{number}": bias}
        save_file(parts, folder / FILE)


def load(folder: Path) -> CountsNetwork:
    """The network that `CountsNetwork.save` wrote."""
    parts = load_file(folder / FILE)
    count = sum(name.startswith("weight") for name in parts)
    return CountsNetwork(
        tables=counts.load(folder),
        sequence=sasrec.load(folder) if (folder / sasrec.FILE).exists() else None,
        centre_F=parts["centre_F"],
        scale_F=parts["scale_F"],
        layers=tuple((parts[f"weight{number}"], parts[f"bias{number}"]) for number in range(count)),
        mixture=tuple(parts["mixture"].tolist()) if "mixture" in parts else (1.0, 0.0),
    )


def features(
    moment: Moment, tables: CountTables, sequence: SasRec | None, objects: NDArray[np.int64] | None = None
) -> Floats:
    """Inputs [I, F] of the network for live ``objects``, ascending, default all: counts, and the sequence model's."""
    x_IF = counts.features(moment, tables, objects)
    if sequence is None:
        return x_IF
    if objects is None:
        objects = moment.inventory.objects
    return np.column_stack([x_IF, sequence.log_probabilities(moment, objects)])


def standardise(x_NF: Floats, centre_F: Floats, scale_F: Floats) -> Floats:
    """Features less their training mean, in standard deviations of training, clipped at `MAX_DEVIATION`."""
    deviation_NF = x_NF - centre_F
    deviation_NF /= scale_F  # in place: a training set takes a gigabyte
    return deviation_NF.clip(-MAX_DEVIATION, MAX_DEVIATION, out=deviation_NF)


def examples(
    visits: Iterable[tuple[Moment, I32]],
    tables: CountTables,
    rng: np.random.Generator,
    sequence: SasRec | None = None,
) -> Examples:
    """Features of visits, each a Moment and the objects acted on, by ``tables`` that end before the first visit.

    So does what ``sequence`` was trained on.
    An inventory larger than `MAX_ROWS_OF_A_VISIT` is represented by the objects acted on and a uniform draw of others.
    """
    parts = []
    for moment, acted in visits:
        assert moment.at_us >= tables.before_us, "the tables hold events of the visit's own time"
        objects = moment.inventory.objects
        acted_I = np.isin(objects, acted)
        rows, log_share = _drawn(acted_I, rng)
        new_I = ~np.isin(objects, moment.history.object_E)
        x_NF = features(moment, tables, sequence, objects[rows])
        parts.append((x_NF, acted_I[rows], new_I[rows], log_share))
    x, acted_N, new_N, log_share_N = zip(*parts, strict=True)
    return Examples(
        x_NF=np.concatenate(x),
        offsets=np.cumsum([0, *map(len, x)]),
        acted_N=np.concatenate(acted_N),
        new_N=np.concatenate(new_N),
        log_share_N=np.concatenate(log_share_N),
    )


def _drawn(acted_I: NDArray[np.bool_], rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
    """(rows of an inventory, ascending; logarithm of the number of objects that each represents)."""
    if len(acted_I) <= MAX_ROWS_OF_A_VISIT:
        return np.arange(len(acted_I)), np.zeros(len(acted_I), np.float32)
    others = np.flatnonzero(~acted_I)
    drawn = rng.choice(others, size=min(MAX_ROWS_OF_A_VISIT, len(others)), replace=False)
    rows = np.union1d(np.flatnonzero(acted_I), drawn)
    return rows, np.where(acted_I[rows], 0.0, np.log(len(others) / len(drawn))).astype(np.float32)


def fit(
    visits: Examples, tables: CountTables, training: Training, seed: int, sequence: SasRec | None = None
) -> CountsNetwork:
    """Train on ``visits`` and score by ``tables`` and ``sequence``, those of the end of training."""
    centre_F = visits.x_NF.mean(axis=0)
    scale_F = visits.x_NF.std(axis=0)
    scale_F[scale_F < 1e-6] = 1.0
    x_NF = torch.from_numpy(standardise(visits.x_NF, centre_F, scale_F))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(x_NF.shape[1], training.units),
            nn.ReLU(),
            nn.Linear(training.units, training.units),
            nn.ReLU(),
            nn.Linear(training.units, 1),
        )
        _train(network, x_NF, visits, training, np.random.default_rng(seed))
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    layers = tuple((layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in linear)
    return CountsNetwork(tables=tables, sequence=sequence, centre_F=centre_F, scale_F=scale_F, layers=layers)


def mixed(network: CountsNetwork, visits: Examples, training: Training) -> CountsNetwork:
    """The network with the `mixture` of the highest likelihood on ``visits``, which neither model has seen."""
    own_N = replace(network, mixture=(1.0, 0.0)).forward(visits.x_NF)
    scores_N2 = torch.from_numpy(np.stack([own_N, visits.x_NF[:, -1]], axis=1))
    weights = nn.Linear(2, 1, bias=False)
    start = torch.tensor([[0.5, 0.5]])
    with torch.no_grad():
        weights.weight.copy_(start)
    optimiser = torch.optim.LBFGS(weights.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    batch = np.arange(len(visits.offsets) - 1)

    def closure() -> float:
        optimiser.zero_grad()
        loss = _loss(weights, scores_N2, visits, batch, training)
        loss = loss + MIXTURE_RIDGE / len(batch) * (weights.weight - start).square().sum()
        loss.backward()
        return loss.item()

    optimiser.step(closure)
    own, sequence = weights.weight.detach()[0].clamp(min=0).tolist()
    return replace(network, mixture=(own, sequence))


def _train(network: nn.Module, x_NF: Tensor, visits: Examples, training: Training, rng: np.random.Generator) -> None:
    """AdamW with a short warm-up, then linear decay to zero."""
    count = len(visits.offsets) - 1
    batches = -(-count // training.batch)
    steps = training.epochs * batches
    optimiser = torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARM_UP, 1.0) * (1 - step / steps)
    )
    with progress.track("train the counts network", training.epochs * count) as advance:
        for _ in range(training.epochs):
            for batch in np.array_split(rng.permutation(count), batches):
                loss = _loss(network, x_NF, visits, batch, training)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                advance(len(batch), f"loss {loss.item():.3f}")


def _loss(network: nn.Module, x_NF: Tensor, visits: Examples, batch: NDArray[np.int64], training: Training) -> Tensor:
    """Loss of a batch of visits among all live objects, plus ``new_weight`` times that among new ones."""
    starts = visits.offsets[batch]
    size_V = visits.offsets[batch + 1] - starts
    visit_N = np.repeat(np.arange(len(batch)), size_V)
    place_N = np.arange(len(visit_N)) - np.repeat(np.cumsum(size_V) - size_V, size_V)
    rows = starts[visit_N] + place_N
    logits_N = network(x_NF[torch.from_numpy(rows)])[:, 0] + torch.from_numpy(visits.log_share_N[rows])
    shape = (len(batch), int(size_V.max()))
    cells = torch.from_numpy(visit_N), torch.from_numpy(place_N)
    logits_VI = torch.full(shape, -torch.inf).index_put(cells, logits_N)
    acted_VI, new_VI = torch.zeros((2, *shape), dtype=torch.bool)
    acted_VI[cells] = torch.from_numpy(visits.acted_N[rows])
    new_VI[cells] = torch.from_numpy(visits.new_N[rows])
    loss = cross_entropy(logits_VI, acted_VI, training.power)
    if training.new_weight:
        among_new_VI = logits_VI.masked_fill(~new_VI, -torch.inf)
        loss = loss + training.new_weight * cross_entropy(among_new_VI, acted_VI & new_VI, training.power)
    return loss


def cross_entropy(logits_VI: Tensor, answer_VI: Tensor, power: float) -> Tensor:
    """Mean negative log-probability of the answers; a visit weighs its number of answers to ``power``.

    Logits of minus infinity are no candidates. Visits without an answer do not count; 0 if no visit has one.
    """
    answers_V = answer_VI.sum(dim=1)
    has_V = answers_V > 0
    if not has_V.any():
        return torch.zeros(())
    log_p_VI = functional.log_softmax(logits_VI[has_V], dim=1).masked_fill(~answer_VI[has_V], 0.0)
    weight_V = answers_V[has_V].float() ** power
    return -((log_p_VI.sum(dim=1) / answers_V[has_V]) * weight_V).sum() / weight_V.sum()
