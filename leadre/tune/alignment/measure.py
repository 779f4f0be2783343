"""Measure how well a tuned model links semantic IDs to words, by questions of the alignment tasks about ads.

Two groups of ads: `seen`, a sample of those that alignment examples may name; `new`, all other ads, which were hidden
from the examples or are not in the training data. Letters: B prompts, T positions, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre import metrics, progress
from leadre.lm.backbone import Backbone
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.layout import Ids
from leadre.semid.trie import build
from leadre.tune.alignment.objects import CATEGORY_TOKENS, TITLE_TOKENS, ObjectTexts
from leadre.tune.alignment.phrasings import CATEGORY_OF, CATEGORY_OF_OBJECT, ID_OF_TITLE, TITLE_OF, Phrasing
from leadre.tune.alignment.sampler import AlignmentSampler

SAMPLE_SIZE = 500
BATCH_SIZE = 128
BEAM = 50
RECALL_AT = 10
DEPTHS = {"1": 1, "2": 2, "full": None}  # of a category path

Objects = NDArray[np.int64]
CategoryPath = tuple[str, ...]


def measure(backbone: Backbone, sampler: AlignmentSampler, seed: int) -> dict[str, dict[str, Any]]:
    """Figures of both groups, see `_group_figures`; ``seed`` draws the sample of `SAMPLE_SIZE` ads."""
    backbone.eval()
    ads = np.unique(sampler.logs.ad_object_A).astype(np.int64)
    known = ads[sampler.known_O[ads]]
    sample = np.sort(np.random.default_rng(seed).permutation(known)[:SAMPLE_SIZE])
    groups = {"seen": sample, "new": np.setdiff1d(ads, known)}
    return {name: _group_figures(backbone, sampler, objects, ads, known) for name, objects in groups.items()}


def _group_figures(
    backbone: Backbone, sampler: AlignmentSampler, objects: Objects, ads: Objects, known: Objects
) -> dict[str, Any]:
    """Figures of ``objects``. A share is over the objects that have the text in question.

    category, category_of_object   share with the exact category path, by depth; the question has codes or object token
    majority                       the same if every answer is the most frequent category path of the known ads
    lookup_1, lookup_2             the same by a table without a model: the most frequent path of the known ads with the
                                   same first code, or first two codes (`lookup`); it has the ads of `seen` themselves
    known_category                 share whose full path occurs among the known ads: the upper bound for new ads
    title_f1                       mean token F1 of the generated title
    recall@10                      share of objects among the first ten results of a search by title over all ads
    """
    texts = sampler.texts
    figures: dict[str, Any] = {"objects": len(objects)}
    labelled = objects[[bool(texts.category_paths[o]) for o in objects]]
    truth = [_category_path(texts, texts.category_ids(texts.category_paths[o])) for o in labelled]
    for name, phrasing in (("category", CATEGORY_OF), ("category_of_object", CATEGORY_OF_OBJECT)):
        answers = _answers(backbone, texts, phrasing, labelled, CATEGORY_TOKENS)
        figures[name] = _by_depth(truth, [_category_path(texts, ids) for ids in answers])
    named = known[[bool(texts.category_paths[o]) for o in known]]
    known_paths = [_category_path(texts, texts.category_ids(texts.category_paths[o])) for o in named]
    codes_OL = sampler.live.codes_OL
    for name, codes in (("majority", 0), ("lookup_1", 1), ("lookup_2", 2)):
        figures[name] = lookup(codes_OL[labelled, :codes], truth, codes_OL[named, :codes], known_paths)
    figures["known_category"] = _mean([path in set(known_paths) for path in truth])
    titled = objects[["title" in texts.fields(o) for o in objects]]
    titles = [texts.fields(o)["title"] for o in titled]
    answers = _answers(backbone, texts, TITLE_OF, titled, TITLE_TOKENS)
    figures["title_f1"] = _mean([token_f1(answer, title) for answer, title in zip(answers, titles, strict=True)])
    figures[f"recall@{RECALL_AT}"] = _mean(_recall_by_title(backbone, sampler, titled, ads))
    return figures


def lookup(
    codes_NL: NDArray[np.int32],
    truth: Sequence[CategoryPath],
    known_codes_ML: NDArray[np.int32],
    known: Sequence[CategoryPath],
) -> dict[str, float]:
    """Share of N objects whose category a table from codes to categories has right, by depth.

    The table holds the most frequent category of the M known objects with the same codes [L]; objects with codes that
    no known one has get the category of the longest prefix that one has, in the end the most frequent of all.
    """
    paths_of: dict[tuple[int, ...], list[CategoryPath]] = {}
    for codes, path in zip(known_codes_ML.tolist(), known, strict=True):
        for length in range(len(codes) + 1):
            paths_of.setdefault(tuple(codes[:length]), []).append(path)
    alike = []
    for codes in codes_NL.tolist():
        prefixes = [tuple(codes[:length]) for length in range(len(codes), -1, -1)]
        alike.append(next((paths_of[prefix] for prefix in prefixes if prefix in paths_of), []))
    return {
        name: _mean([path[:depth] == _most_frequent(paths, depth) for path, paths in zip(truth, alike, strict=True)])
        for name, depth in DEPTHS.items()
    }


def _by_depth(truth: Sequence[CategoryPath], answers: Sequence[CategoryPath]) -> dict[str, float]:
    return {
        name: _mean([a[:depth] == b[:depth] for a, b in zip(truth, answers, strict=True)])
        for name, depth in DEPTHS.items()
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else 0.0


def _most_frequent(paths: Sequence[CategoryPath], depth: int | None) -> CategoryPath:
    counts = Counter(path[:depth] for path in paths)
    return max(counts, key=lambda path: (counts[path], path), default=())


def _category_path(texts: ObjectTexts, ids: Ids) -> CategoryPath:
    """The category path that token IDs spell. Truth and answers have the same maximum length, so both are cut alike."""
    return tuple(part.strip() for part in texts.prompter.render(ids).split(" > "))


def token_f1(answer: Ids, truth: Ids) -> float:
    """Harmonic mean of precision and recall over the two multisets of tokens."""
    common = (Counter(answer.tolist()) & Counter(truth.tolist())).total()
    return 2 * common / (len(answer) + len(truth)) if common else 0.0


def _answers(
    backbone: Backbone, texts: ObjectTexts, phrasing: Phrasing, objects: Objects, max_tokens: int
) -> list[Ids]:
    """The model's answer in words for each object; the question contains the object's codes or token alone."""
    prompts = []
    for o in objects:
        fields = {name: ids for name, ids in texts.fields(o).items() if name in ("codes", "object")}
        prompts.append(texts.question_and_answer(Phrasing(phrasing.question), fields)[0])
    return greedy(backbone, prompts, texts.stop, max_tokens)


def _recall_by_title(backbone: Backbone, sampler: AlignmentSampler, objects: Objects, ads: Objects) -> list[float]:
    """Per object: 1 if it is among the first `RECALL_AT` results of a search by its title over all ``ads``, else 0."""
    live = sampler.live
    texts = sampler.texts
    trie = build(live.codes_OL[ads], live.sizes, None if live.rates_O is None else live.rates_O[ads])
    searcher = BeamSearcher(backbone)
    recalls = list[float]()
    starts = range(0, len(objects), BATCH_SIZE)
    for start in progress.bar(starts, len(starts), "tune: batches of ads found by their titles"):
        batch = objects[start : start + BATCH_SIZE]
        prompts = [texts.question_and_answer(ID_OF_TITLE, texts.fields(o))[0] for o in batch]
        requests = [(ids, [BeamRequest(len(ids) - 1, trie, ads)]) for ids in prompts]
        for o, (result,) in zip(batch, searcher(requests, BeamPolicy(BEAM)), strict=True):
            hit = np.isin(ads[result.rows[:RECALL_AT]], o)[None]
            recalls.append(float(metrics.recall_at(hit, np.ones(1, np.int64), RECALL_AT)[0]))
    return recalls


def greedy(backbone: Backbone, prompts: Sequence[Ids], stop: int, max_tokens: int) -> list[Ids]:
    """Greedy decoding of words after each prompt, up to ``stop`` (excluded) or ``max_tokens``."""
    answers: list[Ids] = [np.zeros(0, np.int32)] * len(prompts)
    order = np.argsort([len(ids) for ids in prompts], kind="stable")
    lengths = np.array([len(prompts[i]) for i in order])
    runs = _equal_lengths(lengths)
    for start, end in progress.bar(runs, len(runs), "tune: batches of answers in words"):
        batch = order[start:end]
        words_BT = _decode(backbone, np.stack([prompts[i] for i in batch]), stop, max_tokens)
        for i, words in zip(batch.tolist(), words_BT, strict=True):
            answers[i] = words[: int(np.argmax(words == stop))] if stop in words else words
    return answers


def _equal_lengths(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(start, end) of runs of equal lengths, at most `BATCH_SIZE` long: batches without padding or mask."""
    cuts = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
    return [
        (at, min(at + BATCH_SIZE, end))
        for start, end in pairwise(cuts.tolist())
        for at in range(start, end, BATCH_SIZE)
    ]


@torch.no_grad()
def _decode(backbone: Backbone, prompts_BT: Ids, stop: int, max_tokens: int) -> Ids:
    """Words int32 [B, up to ``max_tokens``] after prompts of equal length; words after a stop have no meaning."""
    from transformers import DynamicCache

    cache = DynamicCache()
    count, length = prompts_BT.shape

    def forward(ids_BT: Tensor, start: int, causal_until: int) -> Tensor:
        """Hidden state [B, D] of the last position."""
        end = start + ids_BT.shape[1]
        positions_BT = torch.arange(start, end, device=ids_BT.device).expand(count, -1)
        sees_all = torch.ones(count, end - start - causal_until, end, dtype=torch.bool, device=ids_BT.device)
        hidden_BTD: Tensor = backbone(ids_BT, positions_BT, sees_all, causal_until, cache)
        return hidden_BTD[:, -1]

    hidden_BD = forward(torch.from_numpy(prompts_BT.astype(np.int64)).to(backbone.device), 0, length)
    words = list[Tensor]()
    is_open_B = torch.ones(count, dtype=torch.bool, device=backbone.device)
    for step in range(max_tokens):
        words.append(backbone.word_logits(hidden_BD).argmax(-1))
        is_open_B &= words[-1] != stop
        if not is_open_B.any():
            break
        hidden_BD = forward(words[-1][:, None], length + step, 0)
    return torch.stack(words, 1).cpu().numpy().astype(np.int32)
