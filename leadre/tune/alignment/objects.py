"""Text and codes of each object as token IDs, and which objects alignment examples may name.

Letters: O objects, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.data import text as texts
from leadre.data.histories import TRAIN, Logs
from leadre.lm.layout import Ids
from leadre.lm.prior import InventoryPrior
from leadre.tune.alignment.phrasings import Phrasing, fill
from leadre.tune.prompts import NO_TOKENS
from leadre.tune.threads import ThreadBuilder

TITLE_TOKENS = 24
CATEGORY_TOKENS = 32
BRAND_TOKENS = 8
SEED_STREAM = 7  # keeps these draws apart from other draws of the same seed


class ObjectTexts:
    """Title, brand, category and codes of each object as token IDs.

    ``stop`` is the token that ends every answer in words. No cleaned text contains it.
    """

    def __init__(self, threads: ThreadBuilder, live: InventoryPrior) -> None:
        self.prompter = threads.prompter
        self.layout = threads.prompter.layout
        self.codes_OL = live.codes_OL
        objects = threads.logs.objects
        self.titles = [texts.clean(title) for title in objects["title"]]
        self.brands = [texts.clean(brand or "") for brand in objects["brand"]]
        cleaned = ([texts.clean(part) for part in path or ()] for path in objects["category_path"].to_list())
        self.category_paths = [tuple(part for part in path if part) for path in cleaned]
        self.stop = int(self.prompter.plain("\n")[-1])

    def fields(self, o: int) -> dict[str, Ids]:
        """The template fields of object ``o`` as token IDs; fields without a token are left out."""
        path = self.category_paths[o]
        fields = {
            "codes": self.layout.code(self.layout.rows(self.codes_OL[o])),
            "object": self.layout.object(np.array([o])),
            "title": self._text_ids(self.titles[o], TITLE_TOKENS),
            "category": self.category_ids(path),
            "leaf": self._text_ids(path[-1] if path else "", CATEGORY_TOKENS),
            "brand": self._text_ids(self.brands[o], BRAND_TOKENS),
        }
        return {name: ids for name, ids in fields.items() if len(ids)}

    def category_ids(self, path: Sequence[str]) -> Ids:
        """Token IDs of a category path."""
        return self._text_ids(" > ".join(path), CATEGORY_TOKENS)

    def question_and_answer(self, phrasing: Phrasing, fields: Mapping[str, Ids]) -> tuple[Ids, Ids]:
        """(question, answer in words with its stop token); the answer is empty if the phrasing has no words."""
        text = self.prompter.text
        question = fill(phrasing.question, text, fields)
        answer = fill(phrasing.words, text, fields)
        return question, np.append(answer, np.int32(self.stop)) if len(answer) else answer

    def _text_ids(self, words: str, max_tokens: int) -> Ids:
        return self.prompter.text(f" {words}")[:max_tokens] if words else NO_TOKENS


def known_objects(logs: Logs) -> NDArray[np.bool_]:
    """bool [O]: objects live in a training request, or in a user's history before the first held-out request."""
    known_O = np.zeros(len(logs.objects), np.bool_)
    known_O[logs.ad_object_A[logs.inventories.ever_live(logs.request_split_R == TRAIN)]] = True
    held_out_us = logs.request_at_us_R[logs.request_split_R != TRAIN]
    train_end_us = held_out_us.min() if len(held_out_us) else np.iinfo(np.int64).max
    known_O[logs.object_E[logs.at_us_E < train_end_us]] = True
    return known_O


def hidden_objects(titles: Sequence[str], share: float, seed: int) -> NDArray[np.int64]:
    """Object rows, ascending, of a random ``share`` (0 to 1) of the distinct titles.

    Objects that share a title are hidden together; one of them in the training text would reveal the others.
    """
    distinct, title_O = np.unique(np.array(titles, np.str_), return_inverse=True)
    hidden_titles = np.random.default_rng([seed, SEED_STREAM]).permutation(len(distinct))
    hidden_titles = hidden_titles[: round(share * len(distinct))]
    return np.flatnonzero(np.isin(title_O, hidden_titles)).astype(np.int64)
