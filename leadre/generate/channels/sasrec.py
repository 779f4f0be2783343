"""SASRec: self-attention over the user's sequence (Kang and McAuley, ICDM 2018, arXiv 1808.09781), softmax loss.

Two departures from the paper, both of which make the baseline stronger. The loss is the cross-entropy over the whole
catalogue rather than over one sampled negative (Klenitskiy and Vasilev, RecSys 2023). The events of one basket have one
time and no order, so each basket's last position predicts every item of the next basket, as in serving.

Shapes: B sequences, L positions, D width, H heads, O objects, N predicting positions of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from leadre import progress
from leadre.data.histories import train_end_us
from leadre.generate.channels.contract import Method, Scores, baskets, over_inventory

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

FILE = "sasrec.safetensors"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The network's sizes and its training: the best of 8 settings on the validation weeks of the `journey` source.

    A second layer gained nothing there and took twice the time; more width gained more.
    """

    length: int = 200
    width: int = 128
    layers: int = 1
    heads: int = 1
    dropout: float = 0.2
    epochs: int = 8
    batch: int = 16
    learning_rate: float = 3e-3


class Network(nn.Module):
    """Causal transformer encoder; input and output share the object embeddings."""

    def __init__(self, objects: int, shape: Shape) -> None:
        super().__init__()
        self.item = nn.Embedding(objects + 1, shape.width)  # the last row is padding
        self.place = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.norm = nn.LayerNorm(shape.width)
        self.bias = nn.Parameter(torch.zeros(objects))
        self.dropout = nn.Dropout(shape.dropout)
        nn.init.normal_(self.item.weight, std=0.02)
        nn.init.normal_(self.place.weight, std=0.02)

    def forward(self, object_BL: Tensor) -> Tensor:
        """States [B, L, D] of left-aligned sequences; causal attention does not reach the padding on the right."""
        scale = self.item.embedding_dim**0.5
        x_BLD = self.dropout(self.item(object_BL) * scale + self.place.weight[: object_BL.shape[1]])
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)  # type: ignore[no-any-return]

    def logits(self, state_ND: Tensor) -> Tensor:
        """Scores of every object, [N, O]."""
        return functional.linear(state_ND, self.item.weight[:-1], self.bias)


class Block(nn.Module):
    """One pre-norm layer: causal self-attention, then a two-layer feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.rate = shape.dropout
        self.norm_attend = nn.LayerNorm(shape.width)
        self.norm_feed = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.feed = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width), nn.GELU(), nn.Linear(4 * shape.width, shape.width)
        )
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        batch, length, width = x_BLD.shape
        qkv = self.qkv(self.norm_attend(x_BLD)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.dropout(self.out(mixed.transpose(1, 2).reshape(x_BLD.shape)))
        return x_BLD + self.dropout(self.feed(self.norm_feed(x_BLD)))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class SasRec:
    """A trained network and the sizes it was built with."""

    network: Network
    shape: Shape

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """Logits after the last `length` events of the history; see :class:`contract.Channel`."""
        self.network.eval()

        def objects(moments_B: Sequence[Moment]) -> Scores:
            return self._logits([moment.history.object_E[-self.shape.length :] for moment in moments_B])

        return over_inventory(moments, objects, batch=128)

    @torch.inference_mode()
    def _logits(self, histories: list[NDArray[np.int32]]) -> Scores:
        device = self.network.bias.device
        objects = len(self.network.bias)  # also the ID of padding
        object_BL = torch.full((len(histories), max([1, *map(len, histories)])), objects, dtype=torch.long)
        for row, history in enumerate(histories):
            object_BL[row, : len(history)] = torch.from_numpy(history.astype(np.int64))
        # an empty history is one padding embedding: the same scores for all users without a history
        last_B = torch.tensor([max(len(h), 1) - 1 for h in histories], device=device)
        state_BLD = self.network(object_BL.to(device))
        logits_BO = self.network.logits(state_BLD[torch.arange(len(histories), device=device), last_B])
        return np.asarray(logits_BO.float().cpu().numpy(), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write the weights; the sizes go into the file's metadata."""
        sizes = {name: str(getattr(self.shape, name)) for name in ("length", "width", "layers", "heads")}
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(weights, folder / FILE, metadata=sizes)


def load(folder: Path) -> SasRec:
    """The channel that `save` wrote, on the GPU if there is one."""
    with safe_open(folder / FILE, framework="pt") as file:
        sizes = {name: int(value) for name, value in file.metadata().items() if name != "format"}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    shape = Shape(**sizes)
    network = Network(len(weights["bias"]), shape)
    network.load_state_dict(weights)
    return SasRec(network=network.to(_device()), shape=shape)


def fit(logs: Logs, seed: int, threads: int) -> SasRec:
    """Train on all events of training time; the sizes are those of :class:`Shape`."""
    return train(logs, seed=seed, threads=threads, shape=Shape())


def train(logs: Logs, *, seed: int, threads: int, shape: Shape) -> SasRec:
    """Adam with a short warm-up and linear decay, gradients clipped at norm 1; a few minutes on 2 cores."""
    if threads:
        torch.set_num_threads(threads)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(len(logs.objects), shape).to(_device())
        sequences = _train_sequences(logs)
        rng = np.random.default_rng(seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=shape.learning_rate, betas=(0.9, 0.98))
        steps = len(_epoch(sequences, shape, np.random.default_rng(0))) * shape.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / 100, max(1 - step / (1.1 * steps), 0.05))
        )
        network.train()
        with progress.track("train SASRec", shape.epochs * sum(map(len, (s.object_L for s in sequences)))) as advance:
            for _ in range(shape.epochs):
                for batch in _epoch(sequences, shape, rng):
                    loss = _loss(network, batch, objects=len(logs.objects))
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimiser.step()
                    schedule.step()
                    advance(sum(len(s.object_L) for s in batch), f"loss {loss.item():.3f}")
    return SasRec(network=network, shape=shape)


@dataclass(frozen=True)
class _Sequence:
    """A user's events in time order: their objects and the number of the basket of each, both [L]."""

    object_L: NDArray[np.int64]
    basket_L: NDArray[np.int64]


def _train_sequences(logs: Logs) -> list[_Sequence]:
    end_us = train_end_us(logs)
    basket_E = baskets(logs)
    sequences = []
    for start, stop in zip(logs.event_offsets[:-1], logs.event_offsets[1:], strict=True):
        stop = start + int(np.searchsorted(logs.at_us_E[start:stop], end_us))
        basket_L = basket_E[start:stop]
        if len(basket_L) and basket_L[0] != basket_L[-1]:
            sequences.append(_Sequence(logs.object_E[start:stop].astype(np.int64), basket_L))
    return sequences


def _epoch(sequences: list[_Sequence], shape: Shape, rng: np.random.Generator) -> list[list[_Sequence]]:
    """All sequences cut into windows at a random offset; windows of similar length share a batch; batches are shuffled.

    A window has one basket more than the network's input: the target of its last position.
    """
    windows = []
    for sequence in sequences:
        length = len(sequence.object_L)
        first = int(rng.integers(1, shape.length + 1)) if length > shape.length else length
        for stop in range(first, length + shape.length, shape.length):
            span = slice(max(stop - shape.length, 0), min(stop, length))
            ahead = int(np.searchsorted(sequence.basket_L, sequence.basket_L[span.stop - 1] + 1, side="right"))
            windows.append(_Sequence(sequence.object_L[span.start : ahead], sequence.basket_L[span.start : ahead]))
    windows.sort(key=lambda window: len(window.object_L))
    batches = [windows[i : i + shape.batch] for i in range(0, len(windows), shape.batch)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _loss(network: Network, batch: list[_Sequence], *, objects: int) -> Tensor:
    """Mean cross-entropy of all (basket's last position, item of the next basket) pairs of a batch."""
    device = network.bias.device
    length = network.place.num_embeddings
    rows: list[int] = []
    positions: list[int] = []
    sources: list[int] = []  # the predicting position of each target
    targets: list[NDArray[np.int64]] = []
    inputs: list[Tensor] = []
    for row, window in enumerate(batch):
        inputs.append(torch.from_numpy(window.object_L[:length]))
        starts = np.flatnonzero(np.diff(window.basket_L)) + 1  # first positions of the baskets after the first
        bounds = [*starts.tolist(), len(window.object_L)]
        for start, end in pairwise(bounds):
            if start > length:
                break  # the position before it is not an input
            sources += [len(rows)] * (end - start)
            targets.append(window.object_L[start:end])
            rows.append(row)
            positions.append(start - 1)
    object_BL = nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=objects).to(device)
    state_BLD: Tensor = network(object_BL)
    if not rows:
        return state_BLD.sum() * 0.0
    state_ND = network.dropout(state_BLD[torch.tensor(rows, device=device), torch.tensor(positions, device=device)])
    log_p_NO = functional.log_softmax(network.logits(state_ND), dim=-1)
    source_T = torch.tensor(sources, device=device)
    target_T = torch.from_numpy(np.concatenate(targets)).to(device)
    loss: Tensor = -log_p_NO[source_T, target_T].mean()
    return loss


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


SASREC = Method(title="SASRec (softmax)", settings=dataclasses.asdict(Shape()), fit=fit, load=load)
