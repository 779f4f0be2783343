"""SASRec: self-attention over the user's sequence (Kang and McAuley, ICDM 2018, arXiv 1808.09781), softmax loss.

Three departures from the paper, all of which make the baseline stronger. The loss is the cross-entropy over the whole
catalogue, or a sample of it, rather than over one negative (Klenitskiy and Vasilev, RecSys 2023). The events of one
basket have one time and no order, so a basket is one position, and predicts every object of the next basket.
In a log of long histories the score of an ad also has weighted counts of the user and the ad's response rate, and a
second loss is the cross-entropy over the live ads of a request (`sasrec_fit`).

Shapes: B sequences, L positions (baskets), K baskets and E events of all sequences, D width, H heads, O objects, F
features of a (user, object) pair.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from leadre.data.moment import History, Moment

Floats = NDArray[np.float32]

FILE = "sasrec.safetensors"
DECAYS = (1.0, 0.985, 0.9)  # of the user's counts, per basket
STD = 0.02  # of the first embeddings
FIRST_WEIGHTS = (1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 1.0)  # of `combine`, before any training


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The network's sizes and its training."""

    length: int  # baskets
    width: int
    layers: int
    heads: int
    dropout: float
    epochs: int
    batch: int  # sequences
    learning_rate: float
    weight_decay: float = 0.0
    negatives: int = 0  # objects that the loss over the catalogue samples for a batch; 0 = all
    live_weight: float = 0.0  # of the loss over the live ads of a request, beside that over the catalogue


class Baskets(NamedTuple):
    """A sequence of baskets, the oldest first: basket l has the objects ``object_E[offsets[l] : offsets[l + 1]]``."""

    object_E: NDArray[np.int64]
    offsets: NDArray[np.int64]  # [L + 1], from 0


class Network(nn.Module):
    """Causal transformer encoder; input and output share the object embeddings."""

    def __init__(self, objects: int, shape: Shape) -> None:
        super().__init__()
        self.item = nn.Embedding(objects, shape.width)
        self.place = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.norm = nn.LayerNorm(shape.width)
        self.bias = nn.Parameter(torch.zeros(objects))
        self.weight = nn.Parameter(torch.tensor(FIRST_WEIGHTS))  # of `combine`
        self.dropout = nn.Dropout(shape.dropout)
        nn.init.normal_(self.item.weight, std=STD)
        nn.init.normal_(self.place.weight, std=STD)

    def forward(self, sequences: Sequence[Baskets]) -> Tensor:
        """States [B, L, D] of left-aligned sequences; causal attention does not reach the padding on the right."""
        at = self.bias.device
        size_K = np.concatenate([np.diff(sequence.offsets) for sequence in sequences])
        object_E = torch.from_numpy(np.concatenate([sequence.object_E for sequence in sequences])).to(at)
        # objects of a basket are added up and scaled, so that the norm does not grow with their number
        weight_E = torch.from_numpy(np.repeat(size_K, size_K)).to(at, torch.float32).rsqrt()
        offset_K = torch.from_numpy(np.cumsum(size_K) - size_K).to(at)
        basket_KD = functional.embedding_bag(
            object_E, self.item.weight, offset_K, mode="sum", per_sample_weights=weight_E
        )
        lengths_B = np.array([len(sequence.offsets) - 1 for sequence in sequences])
        row_K = torch.from_numpy(np.repeat(np.arange(len(lengths_B)), lengths_B)).to(at)
        position_K = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths_B])).to(at)
        x_BLD = basket_KD.new_zeros(len(lengths_B), int(lengths_B.max()), basket_KD.shape[1])
        x_BLD = x_BLD.index_put((row_K, position_K), basket_KD)
        scale = self.item.embedding_dim**0.5
        x_BLD = self.dropout(x_BLD * scale + self.place.weight[: x_BLD.shape[1]])
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)  # type: ignore[no-any-return]

    def logits(self, state_ND: Tensor) -> Tensor:
        """Floats of every object, [N, O]."""
        return functional.linear(state_ND, self.item.weight, self.bias)


class Block(nn.Module):
    """One pre-norm layer: causal self-attention, then a two-layer feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
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
    """A trained network, the sizes it was built with, and the logarithm of each object's response rate, [O].

    Without ``repeats`` no user of the log acts on an object twice: the objects of the history are ranked last.
    """

    network: Network
    shape: Shape
    log_rate_O: Floats
    repeats: bool

    def scores(self, moments_B: Sequence[Moment]) -> list[Floats]:
        """Floats of the live objects of each Moment, [I] each, aligned with ``moment.inventory.objects``.

        Logits after the last `length` baskets of the history; in a log of long histories also `features`.
        """
        logits_BO = self._logits([_last(moment.history, self.shape.length) for moment in moments_B])
        return [self._of_live(moment, logits_O) for moment, logits_O in zip(moments_B, logits_BO, strict=True)]

    def log_probabilities(self, moment: Moment, objects: NDArray[np.int64]) -> Floats:
        """Logarithm of the softmax over all live objects at some of them, ascending: [N]."""
        (scores_I,) = self.scores([moment])
        row_N = np.searchsorted(moment.inventory.objects, objects)
        return np.asarray(scores_I[row_N] - logsumexp(scores_I), np.float32)

    def _of_live(self, moment: Moment, logits_O: Floats) -> Floats:
        objects = moment.inventory.objects
        logits_I = logits_O[objects]
        if not self.repeats:
            is_seen_I = np.isin(objects, moment.history.object_E)
            return np.where(is_seen_I, logits_I.min(initial=0.0) - 1.0, logits_I).astype(np.float32)
        if not self.shape.live_weight:
            return logits_I
        features_IF = torch.from_numpy(features(moment.history, objects, self.log_rate_O))
        return combine(torch.from_numpy(logits_I), features_IF, self.network.weight.detach().cpu()).numpy()

    @torch.inference_mode()
    def _logits(self, sequences: Sequence[Baskets]) -> Floats:
        self.network.eval()
        last_B = torch.tensor([len(sequence.offsets) - 2 for sequence in sequences])
        state_BLD = self.network(sequences)
        logits_BO = self.network.logits(state_BLD[torch.arange(len(sequences)), last_B])
        return np.asarray(logits_BO.float().cpu().numpy(), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write the weights; the sizes go into the file's metadata."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        weights["log_rate_O"] = torch.from_numpy(self.log_rate_O)
        save_file(
            weights,
            folder / FILE,
            metadata={"shape": json.dumps(dataclasses.asdict(self.shape)), "repeats": json.dumps(self.repeats)},
        )


def _last(history: History, length: int) -> Baskets:
    """The last ``length`` baskets of a history; one empty basket for an empty history."""
    offsets = history.visits.event_offsets[-length - 1 :]
    if len(offsets) < 2:
        return Baskets(np.zeros(0, np.int64), np.zeros(2, np.int64))
    return Baskets(history.object_E[offsets[0] :].astype(np.int64), offsets - offsets[0])


def features(history: History, objects_I: NDArray[np.integer[Any]], log_rate_O: Floats) -> Floats:
    """Features of a user and objects, [I, F]: log1p of the user's counts at each of DECAYS, and the log rate."""
    basket_N = np.cumsum(np.diff(history.at_us_E, prepend=np.int64(-1)) != 0)
    age_N = basket_N[-1] - basket_N if len(basket_N) else basket_N
    counts = [np.bincount(history.object_E, decay**age_N, minlength=len(log_rate_O))[objects_I] for decay in DECAYS]
    return np.stack([*np.log1p(counts), log_rate_O[objects_I]], axis=1).astype(np.float32)


def combine(logit_I: Tensor, features_IF: Tensor, weight_W: Tensor) -> Tensor:
    """Floats [..., I] of objects from logits and `features`; objects new to the user have weights of their own.

    The weights: of the logit of seen and of new objects, of the counts, of the log rate of seen and of new objects.
    """
    is_new_I = (features_IF[..., 0] == 0).long()
    counts = features_IF[..., :-1] @ weight_W[2:-2]
    return logit_I * weight_W[:2][is_new_I] + counts + features_IF[..., -1] * weight_W[-2:][is_new_I]


def load(folder: Path) -> SasRec:
    """The channel that `save` wrote, on the GPU if there is one."""
    with safe_open(folder / FILE, framework="pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    log_rate_O = weights.pop("log_rate_O").numpy()
    shape = Shape(**json.loads(metadata["shape"]))
    network = Network(len(weights["bias"]), shape)
    network.load_state_dict(weights)
    repeats = json.loads(metadata["repeats"])
    return SasRec(network=network.to(device()), shape=shape, log_rate_O=log_rate_O, repeats=repeats)


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
