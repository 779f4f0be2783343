"""Writes prompts: all token IDs that a model receives, except generated codes, come from this module.

A *thread* is one user's prompt over consecutive requests::

    instruction, profile, long-term interests (content, ads)        the prefix: fixed for the thread, can be cached
    a visit's context, the objects acted on                         short-term interests, visit by visit
    a visit's context, ...                                          a request is answered at the end of its context

Words come from the tokenizer; objects and codes are IDs of `lm.layout` and never text, so no text of an ad can encode
to one. The long-term part is a snapshot as of the thread's first visit; the visits contain the later events.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import AD, CONTENT, Clock, Logs
from leadre.data.moment import History, Moment, VisitIndex
from leadre.lm.layout import Ids, Layout
from leadre.tune.intents import LongTerm, long_term
from leadre.tune.options import PromptBlocks
from leadre.units import NANOS_PER_UNIT, US_PER_DAY, US_PER_S

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PARTS = ("night", "morning", "afternoon", "evening")  # a quarter of the day each
TITLE_WORDS = 8  # tokens of a title inside a prompt
PROFILE_TOKENS = 96  # a profile is the caller's text and may be a page long
PLACEMENT_TOKENS = 6  # of a placement's name
NO_TOKENS: Ids = np.zeros(0, np.int32)
# (limit, word, count): the word for decayed counts below the limit, which are about ``count`` on average
FREQUENCIES = (
    (1.5, " once", 1.0),
    (2.5, " twice", 2.0),
    (4.5, " several", 3.3),
    (8.5, " often", 6.0),
    (16.5, " weekly", 12.0),
    (math.inf, " always", 24.0),
)


class PromptWriter:
    """Writes prompts over the objects and placements of ``logs``; ``blocks`` selects their parts.

    ``tokenizer`` is a Hugging Face tokenizer; ``layout`` has the number of its words.
    """

    def __init__(self, logs: Logs, tokenizer: Any, layout: Layout, blocks: PromptBlocks) -> None:
        self.layout = layout
        self.blocks = blocks
        self.placements = logs.placements
        self.clock = logs.clock
        self._titles = logs.objects["title"].to_list()
        self._tokenizer = tokenizer
        self._control = frozenset(tokenizer.added_tokens_decoder)
        self._words = lru_cache(maxsize=100_000)(self._tokenize)

    def prefix(self, moment: Moment, visit: int) -> Ids:
        """Instruction, profile and the long-term interests as of just before ``visit`` of the moment's history."""
        blocks = self.blocks
        history = moment.history
        parts = [self.text("Choose ads this customer will act on.")]
        if blocks.profile:
            parts.append(self.text(f" Profile: {profile_text(moment.profile)}.")[:PROFILE_TOKENS])
        for domain, is_on, name in ((CONTENT, blocks.long_content, "elsewhere"), (AD, blocks.long_ad, "from ads")):
            if is_on and visit:
                last_us = int(history.visits.at_us_V[visit - 1])
                parts.append(self._interests(long_term(history, visit, domain, blocks.long_items), name, last_us))
        return np.concatenate(parts)

    def context(self, at_us: int, placement: int) -> Ids:
        """The weekday, part of the day and placement of a visit; the answer to a request begins after it.

        A log of days states no part of the day, a log of an order no time at all. ``placement`` is an index into
        ``placements``, or -1. A catalogue with one placement does not name it.
        """
        if not (self.blocks.context and self.blocks.words):
            return self.text("\n")
        at = when(at_us, self.clock)
        if not self.blocks.placement or placement < 0 or len(self.placements) < 2:
            return self.text(f"\n{at}:" if at else "\n")
        name = self.text(f", {self.placements[placement]}" if at else self.placements[placement])[:PLACEMENT_TOKENS]
        return np.concatenate([self.text(f"\n{at}"), name, self.text(":")])

    def acted_on(self, history: History, visit: int) -> Ids:
        """The objects that the user acted on in a visit: those reached through ads, then the others."""
        rows = history.visits.events(visit)
        objects_E = history.object_E[rows]
        domain_E = history.domain_E[rows]
        parts = []
        for domain, is_on, name in ((AD, self.blocks.short_ad, " ads"), (CONTENT, self.blocks.short_content, " also")):
            objects = objects_E[domain_E == domain]
            if is_on and len(objects):
                parts += [self.text(name), self._titled(objects)]
        return np.concatenate(parts) if parts else NO_TOKENS

    def positions_before(self, visits: VisitIndex, object_E: NDArray[np.int32]) -> NDArray[np.int64]:
        """About how many positions of short-term interests precede each visit, and the end: int64 [V + 1]."""
        overhead = len(self.context(0, 0)) + len(self.text(" ads")) + len(self.text(" also"))
        offsets = visits.event_offsets
        if self.blocks.short_title:
            objects, row_E = np.unique(object_E, return_inverse=True)
            length_N = np.array([1 + len(self._short_title(int(o))) for o in objects], np.int64)
            offsets = np.concatenate([[0], np.cumsum(length_N[row_E])])[offsets]
        return np.asarray(offsets + overhead * np.arange(len(offsets)), np.int64)

    def text(self, words: str) -> Ids:
        """Token IDs of plain text, cached; without the block ``words`` only the line break that opens a visit."""
        if not self.blocks.words:
            words = "\n" if words.startswith("\n") else ""
        return self._words(words)

    def counts(self) -> dict[int, float]:
        """Last token of each frequency word -> the count it represents; empty without the block ``words``."""
        words = ((self.text(word), times) for _, word, times in FREQUENCIES)
        return {int(ids[-1]): times for ids, times in words if len(ids)}

    def render(self, ids: Sequence[int] | Ids) -> str:
        """A prompt as text: an object as <title>, a code as <level:code>."""
        layout = self.layout
        parts: list[str] = []
        words: list[int] = []
        for entry in [*(int(i) for i in ids), -1]:
            if 0 <= entry < layout.words:
                words.append(entry)
                continue
            if words:
                parts.append(self._tokenizer.decode(words))
                words = []
            row = entry - layout.words
            if row >= layout.codes:
                parts.append(f"<{self._titles[row - layout.codes]}>")
            elif entry >= 0:
                level = int(np.searchsorted(layout.offsets, row, side="right")) - 1
                parts.append(f"<{level}:{row - layout.offsets[level]}>")
        return "".join(parts)

    def _titled(self, objects: NDArray[np.int32]) -> Ids:
        """Each object after the first words of its title, as a position attends only to those before it."""
        rows = self.layout.object(objects)
        if not self.blocks.short_title:
            return rows
        return np.concatenate(
            [np.append(self._short_title(o), row) for o, row in zip(objects.tolist(), rows, strict=True)]
        )

    def _short_title(self, row: int) -> Ids:
        return self.text(" " + self._titles[row])[: self.blocks.short_title]

    def _tokenize(self, words: str) -> Ids:
        if not words:
            return NO_TOKENS
        return self.plain(words)

    def plain(self, words: str) -> Ids:
        """Token IDs of plain text without control tokens: <|im_start|> is tokenised as text."""
        ids = self._tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return np.array([i for i in ids if i not in self._control], np.int32)

    def _interests(self, interests: LongTerm, name: str, last_us: int) -> Ids:
        """The strongest interests in words, then all of them as objects with a count; the weakest are cut to fit.

        The heading does not count towards ``long_tokens``.
        """
        if not len(interests.objects_N):
            return NO_TOKENS
        parts = [self.text(f" Interests {name}:")]
        left = self.blocks.long_tokens
        for i in range(min(self.blocks.described, len(interests.objects_N)) if self.blocks.words else 0):
            title = self._words(" " + self._titles[interests.objects_N[i]])[:TITLE_WORDS]
            fact = self.text(fact_of(interests, i, last_us, self.clock))
            if len(title) + len(fact) > left:
                break
            parts += [title, fact]
            left -= len(title) + len(fact)
        objects = self.layout.object(interests.objects_N)
        listed: list[Ids] = []
        for i, weight in enumerate(interests.weight_N):
            # the count comes first: a position attends only to those before it
            entry = np.append(self.text(how_often(float(weight))), objects[i]).astype(np.int32)
            left -= len(entry)
            if left < 0:
                break
            listed.append(entry)
        return np.concatenate([*parts, *listed[::-1]])  # the strongest last, nearest to the visits


def when(at_us: int, clock: Clock) -> str:
    """A time in words, to the resolution of the log's times."""
    if clock == "order":
        return ""
    at = datetime.fromtimestamp(at_us / US_PER_S, UTC)
    return DAYS[at.weekday()] if clock == "days" else f"{DAYS[at.weekday()]} {PARTS[at.hour // 6]}"


def fact_of(interests: LongTerm, i: int, last_us: int, clock: Clock) -> str:
    """How often the user acted on an object, for how much and how long ago; no money or time that the log lacks."""
    money_nanos = int(interests.money_nanos_N[i])
    money = f" for {round(money_nanos / NANOS_PER_UNIT)}" if money_nanos else ""
    ago = "" if clock == "order" else f", {(last_us - int(interests.last_us_N[i])) // US_PER_DAY} days ago"
    return f", {interests.count_N[i]} times{money}{ago};"


def profile_text(profile: Mapping[str, Any]) -> str:
    """The known values of a user's profile; "unknown" if there are none."""
    return ", ".join(str(value) for value in profile.values() if value not in (None, "unknown")) or "unknown"


def how_often(weight: float) -> str:
    """A decayed count as one word."""
    return next(word for limit, word, _ in FREQUENCIES if weight < limit)


def save_blocks(blocks: PromptBlocks, folder: Path) -> None:
    """Write the prompt format beside the weights that were trained on it."""
    (folder / "prompt.json").write_text(json.dumps(asdict(blocks), indent=2) + "\n", encoding="utf-8")


def load_blocks(folder: Path) -> PromptBlocks:
    """The prompt format that a model was trained on."""
    return PromptBlocks(**json.loads((folder / "prompt.json").read_text(encoding="utf-8")))
