"""Alignment tasks beside the main one: short sentences that tie semantic IDs to what they mean.

A sentence is a question and its answer, in words, codes, or both (`phrasings`). Words are scored by the frozen word
embeddings, codes as in the main task: among what is live in the request that a sentence comes from, or in the catalogue
of training time where it comes from none. The pointer has no part: it would answer from the prompt what the rows of the
codes are to learn.

Sentences are packed into rows of one length, each seeing itself alone, so every step has the same shape and hardly any
padding. What a step holds depends on seed and step only.

Letters: B rows, T = ROW positions, N answers in words (positions), M answers in codes, L levels, K tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from leadre.data import text as texts
from leadre.data.histories import CONTENT, TRAIN, Logs
from leadre.lm.backbone import Backbone
from leadre.lm.layout import Ids
from leadre.lm.prior import InventoryPrior
from leadre.semid.trie import build, path_priors
from leadre.tune import losses
from leadre.tune.alignment.phrasings import PHRASINGS, Phrasing, fill
from leadre.tune.prompts import NOTHING, TITLE_WORDS
from leadre.tune.threads import ThreadBuilder

ROW = 256  # positions; no sentence is longer
TITLE_TOKENS, CATEGORY_TOKENS, BRAND_TOKENS = 24, 32, 8
ITEMS, ITEMS_TOKENS = 16, 96  # of a history inside a sentence
TEXT_SHARE = 0.5  # of the items of a mixed history that are told in words
STREAM = 7  # keeps these draws apart from others of the same seed
REPORT_STEPS = 50


@dataclass(frozen=True)
class AlignmentExample:
    """Question and answer; the last code is not among ``ids``, as nothing follows it.

    ``words`` are the places in ``ids`` of the answer's words and of the stop after them. ``target`` is the object whose
    codes end the sentence (-1: none), ``request`` the one whose live set they are scored in (-1: the catalogue).
    """

    task: str
    ids: Ids
    words: NDArray[np.int64]
    target: int = -1
    request: int = -1


class TaskStep(NamedTuple):
    """What one step had of one task: sentences, their positions, the mean loss of a word or code in nats."""

    step: int
    task: str
    examples: int
    positions: int
    loss: float


@dataclass(frozen=True)
class PackedExamples:
    """Rows of sentences as model inputs, and where which answers are predicted."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_BTT: Tensor
    words_at_N: Tensor  # flat position (b * T + t) whose hidden state predicts the word
    words_N: Tensor
    codes_at_ML: Tensor
    codes_ML: Tensor
    priors: list[Tensor]  # L of float32 [M, sizes[l]]
    task_N: Tensor  # index into ``tasks`` of each answer, words first: [N + M * L]
    tasks: tuple[str, ...]
    examples: Mapping[str, int]
    positions: Mapping[str, int]

    def to(self, device: torch.device) -> PackedExamples:
        """The same on ``device``."""
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, priors=[prior.to(device) for prior in self.priors])


class ObjectTexts:
    """What may be said of each object, as IDs. ``stop`` ends every answer in words; no cleaned text can hold it."""

    def __init__(self, threads: ThreadBuilder, live: InventoryPrior) -> None:
        self.prompter, self.layout, self.codes_OL = threads.prompter, threads.prompter.layout, live.codes_OL
        objects = threads.logs.objects
        self.titles = [texts.clean(title) for title in objects["title"]]
        self.brands = [texts.clean(brand or "") for brand in objects["brand"]]
        cleaned = ([texts.clean(part) for part in path or ()] for path in objects["category_path"].to_list())
        self.paths = [tuple(part for part in path if part) for path in cleaned]
        self.stop = int(self.prompter.plain("\n")[-1])

    def values(self, o: int) -> dict[str, Ids]:
        """The fields that object ``o`` has."""
        path, codes_L = self.paths[o], self.layout.code(self.layout.rows(self.codes_OL[o]))
        found = {
            "codes": codes_L,
            "object": self.layout.object(np.array([o])),
            "title": self._text(self.titles[o], TITLE_TOKENS),
            "category": self.category(path),
            "leaf": self._text(path[-1] if path else "", CATEGORY_TOKENS),
            "brand": self._text(self.brands[o], BRAND_TOKENS),
        }
        return {name: ids for name, ids in found.items() if len(ids)}

    def category(self, path: Sequence[str]) -> Ids:
        """A category path in words."""
        return self._text(" > ".join(path), CATEGORY_TOKENS)

    def write(self, phrasing: Phrasing, values: Mapping[str, Ids]) -> tuple[Ids, Ids]:
        """(question, answer in words with its stop, or nothing)."""
        text = self.prompter.text
        answer = fill(phrasing.words, text, values)
        return fill(phrasing.question, text, values), np.append(answer, np.int32(self.stop)) if len(answer) else answer

    def _text(self, words: str, most: int) -> Ids:
        return self.prompter.text(f" {words}")[:most] if words else NOTHING


class AlignmentSampler:
    """Draws the sentences of each step: ``rows`` of them in positions, of the tasks that have a weight.

    They speak of objects that were there in training time (``known_O``), never of the ``hidden`` ones (object rows),
    and come from the requests that the main task learns from.
    """

    def __init__(
        self,
        threads: ThreadBuilder,
        live: InventoryPrior,
        weights: Mapping[str, float],
        *,
        rows: int,
        seed: int,
        hidden: Collection[int] = (),
    ) -> None:
        assert set(weights) <= set(PHRASINGS), f"tasks {sorted(weights)}"
        self.logs, self.live, self.rows, self.seed = threads.logs, live, rows, seed
        self.catalogue = ObjectTexts(threads, live)
        self.known_O = known_objects(self.logs)
        self.known_O[list(hidden)] = False
        # a text may hold nothing that the tokenizer would say
        named = {int(o): self.catalogue.values(int(o)).keys() for o in np.flatnonzero(self.known_O)}
        self._has_title_O, self._has_category_O = (
            np.array([field in named.get(o, ()) for o in range(len(self.known_O))]) for field in ("title", "category")
        )
        self._ends_R = self.logs.history_ends()
        self._pools = self._pools_of(threads.train_R)
        self.weights = {task: weight for task, weight in weights.items() if weight > 0 and len(self._pools[task])}
        known, rates_O = np.flatnonzero(self.known_O), live.rates_O
        self._trie = build(live.codes_OL[known], live.sizes, None if rates_O is None else rates_O[known])

    @property
    def positions(self) -> int:
        """Positions of a step, padding included."""
        return self.rows * ROW

    def draw(self, step: int, rows: int | None = None) -> list[list[AlignmentExample]]:
        """The rows of a step, ``rows`` of them if it is theirs alone.

        The task that has had the fewest positions is next, so each gets about as many.
        """
        rng = np.random.default_rng([self.seed, step, STREAM])
        spent = dict.fromkeys(rng.permutation(list(self.weights)).tolist(), 0)
        drawn: list[list[AlignmentExample]] = [[] for _ in range(rows or self.rows)]
        left = np.full(len(drawn), ROW)
        while spent:
            task = min(spent, key=lambda name: spent[name])
            sentence = self.make(task, rng)
            length = len(sentence.ids)
            assert length <= ROW, f"a sentence of {length} positions: {task}"
            if left.max() < length:
                break
            row = int(np.argmax(left >= length))
            drawn[row].append(sentence)
            left[row] -= length
            spent[task] += length
        return drawn

    def make(self, task: str, rng: np.random.Generator) -> AlignmentExample:
        """One sentence of a task."""
        chosen, request = int(rng.choice(self._pools[task])), -1
        if task in ("mixed", "content_to_ad", "why"):
            allowed_O = self._has_category_O if task == "why" else self.known_O
            request, acted = chosen, np.unique(self.logs.ad_object_A[self.logs.relevant(chosen)[0]])
            chosen = int(rng.choice(acted[allowed_O[acted]]))
        values = self.catalogue.values(chosen)
        if request >= 0:
            values["items"] = self._items(request, task, rng)
        if task == "prefix_to_category":
            depth = int(rng.integers(1, len(self.live.sizes)))
            values["prefix"] = values["codes"][:depth]
            values["category"] = self.catalogue.category(self.catalogue.paths[chosen][:depth])
        fitting = [phrasing for phrasing in PHRASINGS[task] if phrasing.fields <= values.keys()]
        phrasing = fitting[int(rng.integers(len(fitting)))]
        question, words = self.catalogue.write(phrasing, values)
        codes = values["codes"][:-1] if phrasing.writes_id else NOTHING
        return AlignmentExample(
            task,
            np.concatenate([question, words, codes]),
            len(question) + np.arange(len(words)),
            chosen if phrasing.writes_id else -1,
            request,
        )

    def pack(self, rows: Sequence[Sequence[AlignmentExample]]) -> PackedExamples:
        """Tensors of some rows."""
        ids_BT = np.zeros((len(rows), ROW), np.int64)
        positions_BT, owner_BT = np.zeros_like(ids_BT), np.full_like(ids_BT, -1)
        words_at, codes_at = [NOTHING.astype(np.int64)], list[NDArray[np.int64]]()
        levels = len(self.live.sizes)
        placed = [(b, sentence) for b, row in enumerate(rows) for sentence in row]
        ends = Counter[int]()
        for index, (b, sentence) in enumerate(placed):
            start, length = ends[b], len(sentence.ids)
            inside = slice(start, start + length)
            ids_BT[b, inside], positions_BT[b, inside], owner_BT[b, inside] = sentence.ids, np.arange(length), index
            words_at.append(b * ROW + start + sentence.words)
            if sentence.target >= 0:
                codes_at.append(b * ROW + start + length - levels + np.arange(levels))
            ends[b] += length
        sentences = [sentence for _, sentence in placed]
        coded = [sentence for sentence in sentences if sentence.target >= 0]
        priors = [self._priors(sentence) for sentence in coded]
        tasks = tuple(self.weights)
        task_N = [tasks.index(s.task) for s in sentences for _ in s.words]
        task_N += [tasks.index(s.task) for s in coded for _ in range(levels)]
        at_N = np.concatenate(words_at)
        spent = Counter[str]()
        for sentence in sentences:
            spent[sentence.task] += len(sentence.ids)
        return PackedExamples(
            ids_BT=torch.from_numpy(ids_BT),
            positions_BT=torch.from_numpy(positions_BT),
            mask_BTT=torch.from_numpy((owner_BT[:, :, None] == owner_BT[:, None, :]) & np.tri(ROW, dtype=np.bool_)),
            words_at_N=torch.from_numpy(at_N - 1),  # a word is predicted at the position before it
            words_N=torch.from_numpy(ids_BT.ravel()[at_N]),
            codes_at_ML=torch.from_numpy(np.array(codes_at, np.int64).reshape(-1, levels)),
            codes_ML=torch.from_numpy(self.live.codes_OL[[s.target for s in coded]].astype(np.int64)),
            priors=[torch.from_numpy(np.concatenate(level)) for level in zip(*priors, strict=True)],
            task_N=torch.tensor(task_N, dtype=torch.int64),
            tasks=tasks,
            examples=Counter(sentence.task for sentence in sentences),
            positions=spent,
        )

    def _priors(self, sentence: AlignmentExample) -> list[NDArray[np.float32]]:
        trie = self._trie if sentence.request < 0 else self.live.all(sentence.request)[0]
        return path_priors(trie, self.live.codes_OL[[sentence.target]])

    def _pools_of(self, train_R: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """What each task may be made from: objects, or requests that have something to read and to answer."""
        logs = self.logs
        title, category = np.flatnonzero(self._has_title_O), np.flatnonzero(self._has_category_O)
        pools = {"id_to_text": np.union1d(title, category), "text_to_id": title}
        pools |= {"prefix_to_category": category, "search": category}
        known_E = self.known_O[logs.object_E]
        elsewhere_E = known_E & (logs.domain_E == CONTENT)
        starts_R, ends_R = logs.event_offsets[logs.request_user_R[train_R]], self._ends_R[train_R]
        answers_R, answers_end_R = logs.relevant_offsets[train_R], logs.relevant_offsets[train_R + 1]
        relevant = logs.ad_object_A[logs.relevant_ads]
        for task, readable_E, allowed_O in (
            ("mixed", known_E, self.known_O),
            ("content_to_ad", elsewhere_E, self.known_O),
            ("why", known_E, self._has_category_O),
        ):
            readable = _counts(readable_E, starts_R, ends_R) > 0
            pools[task] = train_R[readable & (_counts(allowed_O[relevant], answers_R, answers_end_R) > 0)]
        return pools

    def _items(self, r: int, task: str, rng: np.random.Generator) -> Ids:
        """The last things a user acted on before a request, oldest first; in a mixed history some are in words."""
        rows = slice(int(self.logs.event_offsets[self.logs.request_user_R[r]]), int(self._ends_R[r]))
        objects = self.logs.object_E[rows]
        kept = self.known_O[objects]
        if task == "content_to_ad":
            kept = kept & (self.logs.domain_E[rows] == CONTENT)
        in_words = rng.random(ITEMS) < (TEXT_SHARE if task == "mixed" else 0.0)
        text, left, parts = self.catalogue.prompter.text, ITEMS_TOKENS, list[Ids]()
        for o, told in zip(objects[kept][::-1].tolist(), in_words, strict=False):
            part = self.catalogue.layout.object(np.array([o]))
            if told and self.catalogue.titles[o]:
                part = np.concatenate([text(f" {self.catalogue.titles[o]}")[:TITLE_WORDS], text(";")])
            left -= len(part)
            if left < 0:
                break
            parts.append(part)
        return np.concatenate(parts[::-1])


def _counts(true_N: NDArray[np.bool_], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many are true in each of these slices."""
    before = np.concatenate([[0], np.cumsum(true_N)])
    return np.asarray(before[ends] - before[starts])


def known_objects(logs: Logs) -> NDArray[np.bool_]:
    """bool [O]: objects that were live in a training request, or met by a user before the first other request."""
    known_O = np.zeros(len(logs.objects), np.bool_)
    inventories = np.unique(logs.request_inventory_R[logs.requests_of(TRAIN)])
    for start, end in zip(logs.inventory_offsets[inventories], logs.inventory_offsets[inventories + 1], strict=True):
        known_O[logs.ad_object_A[logs.inventory_ads[start:end]]] = True
    later_us = logs.request_at_us_R[logs.request_split_R != TRAIN]
    horizon_us = later_us.min() if len(later_us) else np.iinfo(np.int64).max
    known_O[logs.object_E[logs.at_us_E < horizon_us]] = True
    return known_O


def hidden_objects(titles: Sequence[str], share: float, seed: int) -> NDArray[np.int64]:
    """Rows of the objects of a ``share`` of the titles: those of one title are hidden together, or one would tell."""
    distinct, title_O = np.unique(np.array(titles, np.str_), return_inverse=True)
    drawn = np.random.default_rng([seed, STREAM]).permutation(len(distinct))[: round(share * len(distinct))]
    return np.flatnonzero(np.isin(title_O, drawn)).astype(np.int64)


def loss(backbone: Backbone, packed: PackedExamples, weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """(scalar, mean negative log-likelihood of a word or code of each task [K], 0 where it has none).

    The scalar is the weighted mean over the tasks that were drawn, so that seven tasks outweigh the main one no more
    than one does.
    """
    hidden = backbone(packed.ids_BT, packed.positions_BT, packed.mask_BTT, 0).flatten(0, 1)
    words_N = F.cross_entropy(backbone.word_logits(hidden[packed.words_at_N]), packed.words_N, reduction="none")
    log_p = [
        backbone.head_log_p(hidden[packed.codes_at_ML[:, level]], level, prior)
        for level, prior in enumerate(packed.priors)
    ]
    nll_N = torch.cat([words_N, -losses.by_level(log_p, packed.codes_ML).flatten()]) if log_p else words_N
    zeros_K = nll_N.new_zeros(len(packed.tasks))
    count_K = zeros_K.index_add(0, packed.task_N, torch.ones_like(nll_N))
    mean_K = zeros_K.index_add(0, packed.task_N, nll_N) / count_K.clamp(min=1)
    weight_K = torch.tensor([weights[task] for task in packed.tasks], device=hidden.device)
    return (mean_K * weight_K).sum() / (count_K > 0).sum(), mean_K.detach()


def step_loss(
    backbone: Backbone, sentences: AlignmentSampler, step: int, rows: int | None = None
) -> tuple[Tensor, list[TaskStep]]:
    """(loss of the sentences of a step, what was drawn of each task); ``rows`` as in `AlignmentSampler.draw`."""
    packed = sentences.pack(sentences.draw(step, rows)).to(backbone.device)
    total, mean_K = loss(backbone, packed, sentences.weights)
    means = zip(packed.tasks, mean_K.tolist(), strict=True)
    drawn = [TaskStep(step + 1, t, packed.examples[t], packed.positions[t], m) for t, m in means if packed.examples[t]]
    return total, drawn


def summary(drawn: Sequence[TaskStep]) -> list[tuple[str, int, int, float, float]]:
    """(task, examples, positions, mean loss of the first and of the last `REPORT_STEPS` steps) of a run."""

    def mean(some: Sequence[TaskStep]) -> float:
        return float(np.mean([row.loss for row in some])) if some else float("nan")

    last, rows = max((row.step for row in drawn), default=0), []
    for task in PHRASINGS:
        mine = [row for row in drawn if row.task == task]
        opening = [row for row in mine if row.step <= REPORT_STEPS]
        closing = [row for row in mine if row.step > last - REPORT_STEPS]
        counts = sum(row.examples for row in mine), sum(row.positions for row in mine)
        rows.append((task, *counts, mean(opening), mean(closing)))
    return [row for row in rows if row[1]]
