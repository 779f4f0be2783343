"""Training of SASRec, as a rival of the language model (a channel) and for its prior: windows of the users' baskets,
the losses over the catalogue and over live ads.

Shapes: B windows, L baskets, D width, O objects, N predicting positions of a batch, T (position, target) pairs,
Q requests, I live objects of a request, padded, F features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from leadre import progress
from leadre.data.histories import TRAIN, train_end_us
from leadre.data.moment import group_visits, of_requests
from leadre.data.user_counts import train_counts
from leadre.lm import sasrec
from leadre.lm.fits import Method
from leadre.lm.prior import response_rates
from leadre.lm.sasrec import DECAYS, FIRST_WEIGHTS, STD, Baskets, Network, SasRec, Shape, combine, device, features
from leadre.semid import collaborative

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moments

LONG = Shape(
    length=200, width=128, layers=1, heads=1, dropout=0.2, epochs=3, batch=8, learning_rate=3e-3, live_weight=1.0
)
SHORT = Shape(
    length=50, width=128, layers=1, heads=1, dropout=0.5, epochs=40, batch=256, learning_rate=1e-3, negatives=1024
)
RIDGE = 1e-4  # pulls these weights to their first values, where few requests fit them
LATEST = 0.25  # share of the training requests, the last ones, on which they are fitted
HELD_OUT = 20  # one user in so many fits the weights of logit, counts and rate, and is not in the training
NOISE = 0.3  # share of the random start that is kept beside the vectors of `start_from_neighbours`
MAX_VISITS = 5_000  # of one user that are learnt from: a crawler with more would take the whole training
LONG_FROM = 50  # events of training time per user, on average
SETTINGS: Mapping[str, object] = {
    "short": dataclasses.asdict(SHORT),
    "long": dataclasses.asdict(LONG),
    "long_from": LONG_FROM,
    "max_visits": MAX_VISITS,
    "latest": LATEST,
    "held_out": HELD_OUT,
    "noise": NOISE,
    "ridge": RIDGE,
}


def shape_of(logs: Logs) -> Shape:
    """LONG for logs whose users act often, SHORT for the others."""
    in_time = int((logs.at_us_E < train_end_us(logs)).sum())
    return LONG if in_time >= LONG_FROM * len(logs.users) else SHORT


def fit(logs: Logs, seed: int, threads: int) -> SasRec:
    """Train on all events of training time, with the shape that suits the log."""
    return train(logs, seed=seed, threads=threads, shape=shape_of(logs))


def train(logs: Logs, *, seed: int, threads: int, shape: Shape) -> SasRec:
    """AdamW with a short warm-up and linear decay, gradients clipped at norm 1."""
    if threads:
        torch.set_num_threads(threads)
    log_rate_O = np.log(response_rates(logs)).astype(np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(len(logs.objects), shape).to(device())
        start_from_neighbours(network, logs, seed)
        users = list(_train_baskets(logs))
        held_out = users[::HELD_OUT] if shape.live_weight and len(users) > 1 else []  # of a single user nothing is left
        if held_out:
            del users[::HELD_OUT]
        windows = Windows(users, shape)
        live = LiveRequests(logs, log_rate_O) if shape.live_weight else None
        rng = np.random.default_rng(seed)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=shape.learning_rate, betas=(0.9, 0.98), weight_decay=shape.weight_decay, fused=True
        )
        steps = len(windows.epoch(np.random.default_rng(0))) * shape.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / 100, max(1 - step / (1.1 * max(steps, 1)), 0.05))
        )
        network.train()
        with progress.track("train SASRec", steps) as advance:
            for _ in range(shape.epochs):
                for batch in windows.epoch(rng):
                    loss = _loss(network, collate(batch), shape, live, rng)
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimiser.step()
                    schedule.step()
                    advance(1, f"loss {loss.item():.3f}")
        if live is not None:
            fit_weights(network, live, held_out, shape.length)
    return SasRec(network=network, shape=shape, log_rate_O=log_rate_O, repeats=has_repeats(logs))


def has_repeats(logs: Logs) -> bool:
    """Whether any user acts on an object twice in training time."""
    return bool((train_counts(logs).data > 1).any())


def start_from_neighbours(network: Network, logs: Logs, seed: int) -> None:
    """Add vectors of objects that are near in users and in words to the first embeddings: training is shorter.

    Half of the columns have what the same users act on, the other half the words of the objects. Both have the norm
    of a random start.
    """
    half = network.item.embedding_dim // 2
    parts = [user_vectors(logs, half, seed), word_vectors(logs, half, seed)]
    with torch.no_grad():
        network.item.weight.mul_(NOISE)
        for first, part_OD in zip((0, half), parts, strict=True):
            columns = part_OD.shape[1]
            vectors_OD = torch.from_numpy(part_OD).to(network.item.weight.device)
            network.item.weight[:, first : first + columns] += vectors_OD * STD * half**0.5


def user_vectors(logs: Logs, width: int, seed: int) -> NDArray[np.float32]:
    """`collaborative.vectors` of at most ``width`` columns; none if no user acts on two objects in training time."""
    objects_U = train_counts(logs).getnnz(axis=1)
    if objects_U.max(initial=0) < 2:
        return np.zeros((len(logs.objects), 0), np.float32)
    known = len(np.unique(logs.object_E[logs.at_us_E < train_end_us(logs)]))
    return collaborative.vectors(logs, min(width, known - 1), seed)


def word_vectors(logs: Logs, width: int, seed: int) -> NDArray[np.float32]:
    """TF-IDF of the objects' words, reduced to at most ``width`` columns of unit length, float32 [O, D].

    Without two words that tell objects apart there are no columns.
    """
    words = logs.objects.select(
        pl.int_range(pl.len()).alias("object"), pl.col("text").str.to_lowercase().str.extract_all(r"\w+").alias("word")
    )
    counts = words.explode("word").drop_nulls().group_by("object", "word").len()
    counts = counts.with_columns(documents=pl.len().over("word"))
    counts = counts.filter((pl.col("documents") > 1) & (pl.col("documents") < len(logs.objects)))
    counts = counts.with_columns(number=pl.col("word").rank("dense") - 1)
    if counts.is_empty():
        return np.zeros((len(logs.objects), 0), np.float32)
    weight = (1 + counts["len"].log()) * (len(logs.objects) / counts["documents"]).log()
    places = counts["object"].to_numpy(), counts["number"].to_numpy()
    matrix_OW = sparse.csr_array((weight.to_numpy(), places), shape=(len(logs.objects), int(places[1].max()) + 1))
    matrix_OW = sparse.diags_array(1 / sparse.linalg.norm(matrix_OW, axis=1).clip(1e-9)) @ matrix_OW
    columns = min(width, min(matrix_OW.shape) - 1)
    return (
        collaborative.reduce(matrix_OW, columns, seed) if columns > 0 else np.zeros((len(logs.objects), 0), np.float32)
    )


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive baskets of a user, the last of which is a target only.

    ``first_L``: index in the log of each basket's first event.
    """

    baskets: Baskets
    first_L: NDArray[np.int64]


class Windows:
    """The baskets of users, cut into windows."""

    def __init__(self, users: list[Window], shape: Shape) -> None:
        self.shape = shape
        self.users = users

    def epoch(self, rng: np.random.Generator) -> list[list[Window]]:
        """All users' baskets, cut at a random offset; windows of similar length share a batch; batches are shuffled."""
        windows = [window for user in self.users for window in cut(user, self.shape.length, rng)]
        rng.shuffle(windows)
        windows.sort(key=lambda window: len(window.first_L))
        batches = [windows[i : i + self.shape.batch] for i in range(0, len(windows), self.shape.batch)]
        return [batches[i] for i in rng.permutation(len(batches))]


def _train_baskets(logs: Logs) -> Iterator[Window]:
    """The last `MAX_VISITS` baskets of each user with at least two in training time."""
    end_us = train_end_us(logs)
    visits = group_visits(logs.at_us_E, logs.event_offsets)
    for start, stop in pairwise(visits.user_offsets.tolist()):
        end = start + int(np.searchsorted(visits.at_us_V[start:stop], end_us))
        if end - start > 1:
            offsets = visits.event_offsets[max(start, end - MAX_VISITS) : end + 1]
            objects = logs.object_E[offsets[0] : offsets[-1]].astype(np.int64)
            yield Window(Baskets(objects, offsets - offsets[0]), offsets[:-1])


def cut(user: Window, length: int, rng: np.random.Generator) -> Iterator[Window]:
    """Windows of at most ``length`` inputs and one more basket, the target of the last input."""
    inputs = len(user.first_L) - 1
    stop = int(rng.integers(1, length + 1)) if inputs > length else inputs
    for end in range(stop, inputs + length, length):
        start = max(end - length, 0)
        offsets = user.baskets.offsets[start : min(end, inputs) + 2]
        objects = user.baskets.object_E[offsets[0] : offsets[-1]]
        yield Window(Baskets(objects, offsets - offsets[0]), user.first_L[start : start + len(offsets) - 1])


@dataclass(frozen=True)
class Batch:
    """Inputs of B sequences and the targets of their N positions."""

    inputs: list[Baskets]
    row_N: NDArray[np.int64]
    position_N: NDArray[np.int64]
    next_N: NDArray[np.int64]  # first event, in the log, of the basket that follows the position
    source_T: NDArray[np.int64]  # the position of each target
    target_T: NDArray[np.int64]


def collate(windows: list[Window]) -> Batch:
    """Every basket but the last of a window predicts every object of the next basket."""
    lengths = np.array([len(window.first_L) - 1 for window in windows])
    inputs = []
    targets = []
    for window in windows:
        objects, offsets = window.baskets
        inputs.append(Baskets(objects[: offsets[-2]], offsets[:-1]))
        targets.append(objects[offsets[1] :])
    sizes_N = np.concatenate([np.diff(window.baskets.offsets)[1:] for window in windows])
    return Batch(
        inputs=inputs,
        row_N=np.repeat(np.arange(len(windows)), lengths),
        position_N=np.concatenate([np.arange(length) for length in lengths]),
        next_N=np.concatenate([window.first_L[1:] for window in windows]),
        source_T=np.repeat(np.arange(len(sizes_N)), sizes_N),
        target_T=np.concatenate(targets),
    )


def _loss(network: Network, batch: Batch, shape: Shape, live: LiveRequests | None, rng: np.random.Generator) -> Tensor:
    """Cross-entropy over the catalogue, plus that over live ads, by its weight."""
    at = network.bias.device
    state_BLD: Tensor = network(batch.inputs)
    positions = torch.from_numpy(batch.row_N).to(at), torch.from_numpy(batch.position_N).to(at)
    state_ND = network.dropout(state_BLD[positions])
    if shape.negatives:
        return sampled_loss(network, state_ND, batch, shape.negatives, rng)
    logits_NO = network.logits(state_ND)
    source_T = torch.from_numpy(batch.source_T).to(at)
    target_T = torch.from_numpy(batch.target_T).to(at)
    loss = (logits_NO.logsumexp(dim=-1)[source_T] - logits_NO[source_T, target_T]).mean()
    if live is not None:
        loss = loss + shape.live_weight * live.loss(network, logits_NO, batch.next_N)
    return loss


def sampled_loss(network: Network, state_ND: Tensor, batch: Batch, negatives: int, rng: np.random.Generator) -> Tensor:
    """Cross-entropy of each target among itself and objects drawn uniformly for the whole batch.

    The sample represents all other objects, so its sum is scaled up to their number.
    """
    at = state_ND.device
    objects = len(network.bias)
    drawn_K = torch.from_numpy(rng.choice(objects, size=min(negatives, objects), replace=False)).to(at)
    source_T = torch.from_numpy(batch.source_T).to(at)
    target_T = torch.from_numpy(batch.target_T).to(at)
    weight = network.item.weight
    right_T = (state_ND[source_T] * weight[target_T]).sum(-1) + network.bias[target_T]
    logits_TK = functional.linear(state_ND, weight[drawn_K], network.bias[drawn_K])[source_T]
    logits_TK = logits_TK.masked_fill(target_T[:, None] == drawn_K, -torch.inf)
    others_T = logits_TK.logsumexp(dim=-1) + float(np.log(objects / len(drawn_K)))
    return functional.softplus(others_T - right_T).mean()


@dataclass(frozen=True)
class Choices:
    """Choices of users among the live objects of Q requests; ``place_T`` is the place of each target among them."""

    logit_QI: Tensor
    features_QIF: Tensor
    is_live_QI: Tensor
    source_T: Tensor
    place_T: Tensor

    def loss(self, weight_W: Tensor) -> Tensor:
        """Mean cross-entropy of the targets among all live objects, plus that of new targets among new objects."""
        scores_QI = combine(self.logit_QI, self.features_QIF, weight_W).masked_fill(~self.is_live_QI, -torch.inf)
        everything = -scores_QI.log_softmax(dim=-1)[self.source_T, self.place_T].mean()
        is_seen_QI = self.features_QIF[..., 0] > 0
        is_new_T = ~is_seen_QI[self.source_T, self.place_T]
        if not is_new_T.any():
            return everything
        row_N, source_N = self.source_T[is_new_T].unique(return_inverse=True)
        among_new = scores_QI[row_N].masked_fill(is_seen_QI[row_N], -torch.inf).log_softmax(dim=-1)
        return everything - among_new[source_N, self.place_T[is_new_T]].mean()


def fit_weights(network: Network, live: LiveRequests, users: list[Window], length: int) -> None:
    """Fit the weights of `combine` on users whom the network has not seen.

    On its own users the network's logits fit too well, and the counts would get too little weight. Only the latest
    requests are read: their histories are as long as those of the requests that will be scored.
    """
    logs = live.logs
    request_at_us = logs.request_at_us_R[live.request_E[live.request_E >= 0]]
    from_us = np.quantile(request_at_us, 1 - LATEST) if len(request_at_us) else 0
    network.eval()
    choices = []
    with torch.no_grad():
        for user in users:
            for window in cut(user, length, np.random.default_rng(0)):
                batch = collate([window])
                next_N = np.where(logs.at_us_E[batch.next_N] >= from_us, batch.next_N, len(logs.at_us_E))
                if (live.request_E[next_N] >= 0).any():
                    choices.append(live.choices(network.logits(network(batch.inputs)[0]), next_N))
    if not choices:
        return
    targets = sum(len(choice.source_T) for choice in choices)
    optimiser = torch.optim.LBFGS([network.weight], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss = sum((choice.loss(network.weight) * len(choice.source_T) for choice in choices), torch.zeros(()))
        loss = loss / targets + RIDGE * (network.weight - torch.tensor(FIRST_WEIGHTS)).square().sum()
        loss.backward()
        return loss.item()

    optimiser.step(closure)


class LiveRequests:
    """Training requests by the event that they precede, with the live objects and their features."""

    def __init__(self, logs: Logs, log_rate_O: NDArray[np.float32]) -> None:
        self.moments: Moments = of_requests(logs)
        self.log_rate_O = log_rate_O
        self.logs = logs
        self.request_E = np.full(len(logs.at_us_E) + 1, -1, np.int64)
        has_outcome_R = np.diff(logs.relevant_offsets) > 0
        requests = np.flatnonzero((logs.request_split_R == TRAIN) & has_outcome_R)
        self.request_E[self.moments.end_M[requests]] = requests

    def loss(self, network: Network, logits_NO: Tensor, next_N: NDArray[np.int64]) -> Tensor:
        """Cross-entropy of the objects acted on among the live ones, where a request precedes the next basket."""
        if not (self.request_E[next_N] >= 0).any():
            return logits_NO.sum() * 0.0
        choices = self.choices(logits_NO, next_N)
        return choices.loss(network.weight)

    def choices(self, logits_NO: Tensor, next_N: NDArray[np.int64]) -> Choices:
        """The requests among the next baskets, of which there is at least one."""
        at = logits_NO.device
        row_Q = np.flatnonzero(self.request_E[next_N] >= 0)
        live_QI, features_QIF, source_T, place_T = self._arrays(self.request_E[next_N[row_Q]])
        live = torch.from_numpy(live_QI).to(at)
        logit_QI = logits_NO[torch.from_numpy(row_Q).to(at)].gather(1, live.clamp(min=0))
        return Choices(
            logit_QI=logit_QI,
            features_QIF=torch.from_numpy(features_QIF).to(at),
            is_live_QI=live >= 0,
            source_T=torch.from_numpy(source_T).to(at),
            place_T=torch.from_numpy(place_T).to(at),
        )

    def _arrays(
        self, request_Q: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """(live objects [Q, I], -1 = padding; features [Q, I, F]; request and place in it of each target, both [T])."""
        moments = list(self.moments.at(request_Q))
        longest = max(len(moment.inventory.objects) for moment in moments)
        live_QI = np.full((len(moments), longest), -1, np.int64)
        features_QIF = np.zeros((len(moments), longest, len(DECAYS) + 1), np.float32)
        places = []
        for row, (request, moment) in enumerate(zip(request_Q.tolist(), moments, strict=True)):
            objects = moment.inventory.objects
            live_QI[row, : len(objects)] = objects
            features_QIF[row, : len(objects)] = features(moment.history, objects, self.log_rate_O)
            acted = np.unique(self.logs.ad_object_A[self.logs.relevant(request)[0]])
            places.append(np.flatnonzero(np.isin(objects, acted)))
        source_T = np.repeat(np.arange(len(places)), [len(place) for place in places])
        return live_QI, features_QIF, source_T, np.concatenate(places)


SASREC = Method(settings=SETTINGS, fit=fit, load=sasrec.load)
