"""Alignment examples: an auxiliary task of short questions and answers that ties semantic IDs to words.

An answer is words, codes, or both (`phrasings`). Several examples share a row of `ROW_POSITIONS` positions (`packing`),
so that every step has the same shape and little padding. The examples of a step depend on seed and step only.

Letters: O objects, R requests, E events.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import CONTENT
from leadre.lm.layout import Ids
from leadre.lm.prior import InventoryPrior
from leadre.semid.trie import Trie, build
from leadre.tune.alignment.objects import SEED_STREAM, ObjectTexts, known_objects
from leadre.tune.alignment.phrasings import PHRASINGS
from leadre.tune.prompts import NO_TOKENS, TITLE_WORDS
from leadre.tune.threads import ThreadBuilder

ROW_POSITIONS = 256  # no example is longer
MAX_ITEMS = 16  # items of the history in an example
MAX_ITEMS_TOKENS = 96
TITLE_SHARE = 0.5  # share of the items of a mixed history that are written as titles

REQUEST_TASKS = ("mixed", "content_to_ad", "why")  # drawn from requests; the other tasks are drawn from objects


@dataclass(frozen=True)
class AlignmentExample:
    """Question and answer as one sequence of token IDs; the last code of the answer is not part of ``ids``.

    ``words``: positions in ``ids`` of the answer's words and of the stop token after them.
    ``target``: the object whose codes end the example; -1 if the answer has no codes.
    ``request``: the request whose live inventory is the candidate set of the codes; -1: the training catalogue.
    """

    task: str
    ids: Ids
    words: NDArray[np.int64]
    target: int = -1
    request: int = -1


class AlignmentSampler:
    """Draws the alignment examples of each training step: ``rows`` rows, from the tasks with a positive weight.

    Examples name objects that were known in training time (``known_O``) and are not ``hidden`` (object indices), and
    use the requests that the main task trains on. ``weights`` has the weight of each task in the loss; tasks without
    objects or requests to draw from are dropped.
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
        assert set(weights) <= set(PHRASINGS), f"unknown tasks: {sorted(set(weights) - set(PHRASINGS))}"
        self.logs = threads.logs
        self.moments = threads.moments
        self.live = live
        self.rows = rows
        self.seed = seed
        self.texts = ObjectTexts(threads, live)
        self.known_O = known_objects(self.logs)
        self.known_O[list(hidden)] = False
        # a field may be empty although its text is not, as the tokenizer may return no token for it
        fields = {int(o): self.texts.fields(int(o)).keys() for o in np.flatnonzero(self.known_O)}
        self._has_title_O = np.array(["title" in fields.get(o, ()) for o in range(len(self.known_O))])
        self._has_category_O = np.array(["category" in fields.get(o, ()) for o in range(len(self.known_O))])
        self._ends_R = self.logs.history_ends()
        self._pools = self._object_pools() | self._request_pools(threads.train_R)
        self.weights = {task: weight for task, weight in weights.items() if weight > 0 and len(self._pools[task])}
        known = np.flatnonzero(self.known_O)
        rates_O = live.rates_O
        self.catalogue_trie = build(live.codes_OL[known], live.sizes, None if rates_O is None else rates_O[known])

    @property
    def positions(self) -> int:
        """Positions of a step, padding included."""
        return self.rows * ROW_POSITIONS

    def trie_of(self, example: AlignmentExample) -> Trie:
        """The trie, with prior, of the objects among which the codes of an example are scored."""
        return self.catalogue_trie if example.request < 0 else self.live.all(self.moments[example.request])[0]

    def draw(self, step: int, rows: int | None = None) -> list[list[AlignmentExample]]:
        """The examples of a step by row; ``rows`` overrides the number of rows.

        Each next example is of the task with the fewest positions so far, so all tasks get about equally many.
        """
        rng = np.random.default_rng([self.seed, step, SEED_STREAM])
        spent = dict.fromkeys(rng.permutation(list(self.weights)).tolist(), 0)
        examples_by_row: list[list[AlignmentExample]] = [[] for _ in range(rows or self.rows)]
        free = np.full(len(examples_by_row), ROW_POSITIONS)
        while spent:
            task = min(spent, key=lambda name: spent[name])
            example = self.example(task, rng)
            length = len(example.ids)
            assert length <= ROW_POSITIONS, f"task {task}: an example of {length} positions, at most {ROW_POSITIONS}"
            if free.max() < length:
                break
            row = int(np.argmax(free >= length))  # first fit
            examples_by_row[row].append(example)
            free[row] -= length
            spent[task] += length
        return examples_by_row

    def example(self, task: str, rng: np.random.Generator) -> AlignmentExample:
        """One example of a task."""
        drawn = int(rng.choice(self._pools[task]))
        request = -1
        target = drawn
        if task in REQUEST_TASKS:
            request = drawn
            allowed_O = self._has_category_O if task == "why" else self.known_O
            acted_on = np.unique(self.logs.ad_object_A[self.logs.relevant(request)[0]])
            target = int(rng.choice(acted_on[allowed_O[acted_on]]))
        fields = self.texts.fields(target)
        if request >= 0:
            fields["items"] = self._history(request, task, rng)
        if task == "prefix_to_category":
            depth = int(rng.integers(1, len(self.live.sizes)))
            fields["prefix"] = fields["codes"][:depth]
            fields["category"] = self.texts.category_ids(self.texts.category_paths[target][:depth])
        phrasings = [phrasing for phrasing in PHRASINGS[task] if phrasing.fields <= fields.keys()]
        phrasing = phrasings[int(rng.integers(len(phrasings)))]
        question, words = self.texts.question_and_answer(phrasing, fields)
        codes = fields["codes"][:-1] if phrasing.writes_id else NO_TOKENS
        return AlignmentExample(
            task,
            np.concatenate([question, words, codes]),
            len(question) + np.arange(len(words)),
            target if phrasing.writes_id else -1,
            request,
        )

    def _object_pools(self) -> dict[str, NDArray[np.int64]]:
        """Task -> the objects that an example can be made from."""
        with_title = np.flatnonzero(self._has_title_O)
        with_category = np.flatnonzero(self._has_category_O)
        return {
            "id_to_text": np.union1d(with_title, with_category),
            "text_to_id": with_title,
            "prefix_to_category": with_category,
            "search": with_category,
        }

    def _request_pools(self, train_R: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Task -> the training requests with a history to show and an object to answer with."""
        logs = self.logs
        known_E = self.known_O[logs.object_E]
        known_content_E = known_E & (logs.domain_E == CONTENT)
        starts_R = logs.event_offsets[logs.request_user_R[train_R]]
        ends_R = self._ends_R[train_R]
        relevant = logs.ad_object_A[logs.relevant_ads]
        relevant_starts_R = logs.relevant_offsets[train_R]
        relevant_ends_R = logs.relevant_offsets[train_R + 1]
        pools = {}
        for task, shown_E, allowed_O in (
            ("mixed", known_E, self.known_O),
            ("content_to_ad", known_content_E, self.known_O),
            ("why", known_E, self._has_category_O),
        ):
            has_history_R = _true_counts(shown_E, starts_R, ends_R) > 0
            has_answer_R = _true_counts(allowed_O[relevant], relevant_starts_R, relevant_ends_R) > 0
            pools[task] = train_R[has_history_R & has_answer_R]
        return pools

    def _history(self, r: int, task: str, rng: np.random.Generator) -> Ids:
        """Token IDs of the latest items before request ``r``, oldest first; in task "mixed" some are titles."""
        events = slice(int(self.logs.event_offsets[self.logs.request_user_R[r]]), int(self._ends_R[r]))
        objects = self.logs.object_E[events]
        shown = self.known_O[objects]
        if task == "content_to_ad":
            shown = shown & (self.logs.domain_E[events] == CONTENT)
        as_title = rng.random(MAX_ITEMS) < (TITLE_SHARE if task == "mixed" else 0.0)
        text = self.texts.prompter.text
        left = MAX_ITEMS_TOKENS
        items = list[Ids]()
        for o, is_title in zip(objects[shown][::-1].tolist(), as_title, strict=False):
            item = self.texts.layout.object(np.array([o]))
            if is_title and self.texts.titles[o]:
                item = np.concatenate([text(f" {self.texts.titles[o]}")[:TITLE_WORDS], text(";")])
            left -= len(item)
            if left < 0:
                break
            items.append(item)
        return np.concatenate(items[::-1])


def _true_counts(is_true_N: NDArray[np.bool_], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of true values in each slice ``starts[i]:ends[i]``."""
    before = np.concatenate([[0], np.cumsum(is_true_N)])
    return np.asarray(before[ends] - before[starts])
