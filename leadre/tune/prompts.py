"""The only place where a prompt is written.

A *thread* is one user's prompt over consecutive requests::

    instruction, profile, long-term interests (content, ads)        the prefix: fixed for the thread, can be cached
    a visit's context, what happened there                          short-term interests, visit by visit
    a visit's context, ...                                          a request is answered where its context ends

Words come from the tokenizer; objects and codes are IDs of `lm.layout` and never text, so nothing an ad says can turn
into one. The long-term part is a snapshot taken where the thread begins; what came later stands in the visits.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from leadre.data.histories import AD, CONTENT, Logs
from leadre.lm.layout import Ids, Layout
from leadre.tune.intents import LongTerm, VisitIndex, group_visits, long_term
from leadre.units import NANOS_PER_UNIT, US_PER_DAY, US_PER_S

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PARTS = ("night", "morning", "afternoon", "evening")  # a quarter of the day each
TITLE_WORDS = 8  # tokens of a title inside a prompt
PROFILE_TOKENS = 96  # a profile comes from outside and may be a page long
PLACEMENT_TOKENS = 6  # of a placement's name
NOTHING: Ids = np.zeros(0, np.int32)
# a decayed count below the limit is told by the word, which stands for about so many times
FREQUENCIES = (
    (1.5, " once", 1.0),
    (2.5, " twice", 2.0),
    (4.5, " several", 3.3),
    (8.5, " often", 6.0),
    (16.5, " weekly", 12.0),
    (math.inf, " always", 24.0),
)


@dataclass(frozen=True, kw_only=True)
class PromptBlocks:
    """What goes into a prompt, and how much of it; tokens count positions."""

    words: bool = True
    profile: bool = True
    long_content: bool = True
    long_ad: bool = True
    short_content: bool = True
    short_ad: bool = True
    context: bool = True
    placement: bool = True
    long_items: int = 48
    described: int = 4
    long_tokens: int = 160
    short_tokens: int = 512


class PromptWriter:
    """Writes the prompts of one log. ``tokenizer`` is a Hugging Face one; ``layout`` counts its words."""

    def __init__(self, logs: Logs, tokenizer: Any, layout: Layout, blocks: PromptBlocks) -> None:
        self.logs, self.layout, self.blocks = logs, layout, blocks
        self.visits: VisitIndex = group_visits(logs)
        self._tokenizer = tokenizer
        self._control = frozenset(tokenizer.added_tokens_decoder)
        self._words = lru_cache(maxsize=100_000)(self._tokenize)
        self._titles = logs.objects["title"].to_list()
        self._profiles = logs.users.drop("user_id").to_dicts()

    def over(self, logs: Logs) -> PromptWriter:
        """The same for other logs of the same objects; what was tokenised stays known."""
        other = copy.copy(self)
        other.logs, other.visits = logs, group_visits(logs)
        other._profiles = logs.users.drop("user_id").to_dicts()
        return other

    def prefix(self, user: int, visit: int) -> Ids:
        """Instruction, profile and the long-term interests as of just before ``visit`` (an index into the visits)."""
        blocks = self.blocks
        parts = [self.text("Choose ads this customer will act on.")]
        if blocks.profile:
            parts.append(self.text(f" Profile: {self._profile(user)}.")[:PROFILE_TOKENS])
        for domain, wanted, name in ((CONTENT, blocks.long_content, "elsewhere"), (AD, blocks.long_ad, "from ads")):
            if wanted and visit > self.visits.user_offsets[user]:
                now_us = int(self.visits.at_us_V[visit - 1])
                parts.append(
                    self._interests(
                        long_term(self.logs, self.visits, user, visit, domain, blocks.long_items), name, now_us
                    )
                )
        return np.concatenate(parts)

    def context(self, at_us: int, placement: int) -> Ids:
        """What is known of a visit before anything happens in it; the answer to a request begins after it.

        ``placement`` is an index into those of the logs, or -1; where there is only one it says nothing.
        """
        if not (self.blocks.context and self.blocks.words):
            return self.text("\n")
        at = datetime.fromtimestamp(at_us / US_PER_S, UTC)
        when = f"\n{DAYS[at.weekday()]} {PARTS[at.hour // 6]}"
        if not self.blocks.placement or placement < 0 or len(self.logs.placements) < 2:
            return self.text(f"{when}:")
        name = self.text(f", {self.logs.placements[placement]}")[:PLACEMENT_TOKENS]
        return np.concatenate([self.text(when), name, self.text(":")])

    def happened(self, visit: int) -> Ids:
        """What the user acted on in a visit: objects reached through ads, then the others."""
        rows = self.visits.events(visit)
        objects_E, domain_E = self.logs.object_E[rows], self.logs.domain_E[rows]
        parts = []
        for domain, wanted, name in ((AD, self.blocks.short_ad, " ads"), (CONTENT, self.blocks.short_content, " also")):
            objects = objects_E[domain_E == domain]
            if wanted and len(objects):
                parts += [self.text(name), self.layout.object(objects)]
        return np.concatenate(parts) if parts else NOTHING

    def text(self, words: str) -> Ids:
        """Token IDs of plain text; none without ``words``, except for the line break that opens a visit."""
        if not self.blocks.words:
            words = "\n" if words.startswith("\n") else ""
        return self._words(words)

    def counts(self) -> dict[int, float]:
        """The token that ends each word of frequency -> how many times it stands for; empty in prompts of IDs alone."""
        words = ((self.text(word), times) for _, word, times in FREQUENCIES)
        return {int(ids[-1]): times for ids, times in words if len(ids)}

    def render(self, ids: Sequence[int] | Ids) -> str:
        """A prompt as a person reads it; an object as <title>, a code as <level:code>."""
        layout, parts, words = self.layout, [], list[int]()
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

    def _tokenize(self, words: str) -> Ids:
        if not words:
            return NOTHING
        return self.plain(words)

    def plain(self, words: str) -> Ids:
        """Token IDs in which no control token can stand, whatever ``words`` spell (<|im_start|> is read as text)."""
        ids = self._tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return np.array([i for i in ids if i not in self._control], np.int32)

    def _profile(self, user: int) -> str:
        known = [str(value) for value in self._profiles[user].values() if value not in (None, "unknown")]
        return ", ".join(known) or "unknown"

    def _interests(self, interests: LongTerm, name: str, now_us: int) -> Ids:
        """The strongest interests in words, then all of them as objects with a count; the weakest are cut to fit.

        ``long_tokens`` holds for what stands after the heading.
        """
        if not len(interests.objects_N):
            return NOTHING
        parts, left = [self.text(f" Interests {name}:")], self.blocks.long_tokens
        for i in range(min(self.blocks.described, len(interests.objects_N)) if self.blocks.words else 0):
            title = self._words(" " + self._titles[interests.objects_N[i]])[:TITLE_WORDS]
            days = (now_us - int(interests.last_us_N[i])) // US_PER_DAY
            dollars = round(int(interests.money_nanos_N[i]) / NANOS_PER_UNIT)
            fact = self.text(f", {interests.count_N[i]} times for {dollars}, {days} days ago;")
            if len(title) + len(fact) > left:
                break
            parts += [title, fact]
            left -= len(title) + len(fact)
        objects = self.layout.object(interests.objects_N)
        listed: list[Ids] = []
        for i, weight in enumerate(interests.weight_N):
            # how often comes first: a position knows only what it follows
            entry = np.append(self.text(how_often(float(weight))), objects[i]).astype(np.int32)
            left -= len(entry)
            if left < 0:
                break
            listed.append(entry)
        return np.concatenate([*parts, *listed[::-1]])  # the strongest last, where attention reaches them soonest


def how_often(weight: float) -> str:
    """A decayed count as one word that the tokenizer knows."""
    return next(word for limit, word, _ in FREQUENCIES if weight < limit)


def save_blocks(blocks: PromptBlocks, folder: Path) -> None:
    """Write the prompt's form beside the weights that were trained on it."""
    (folder / "prompt.json").write_text(json.dumps(asdict(blocks), indent=2) + "\n", encoding="utf-8")


def load_blocks(folder: Path) -> PromptBlocks:
    """The form of the prompts a model was trained on."""
    return PromptBlocks(**json.loads((folder / "prompt.json").read_text(encoding="utf-8")))
