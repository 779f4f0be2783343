"""Does a tuned model know what its IDs mean? Questions that the alignment tasks teach, asked of ads.

Ads of two groups: `seen`, a sample of those that sentences spoke of; `new`, all others: hidden from the sentences, or
not there yet in training time. Letters: B prompts, T positions, K results.
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

from leadre import metrics
from leadre.lm.backbone import Backbone
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.layout import Ids
from leadre.semid.trie import build
from leadre.tune.alignment.phrasings import CATEGORY_OF, CATEGORY_OF_OBJECT, ID_OF_TITLE, TITLE_OF, Phrasing
from leadre.tune.alignment.tasks import CATEGORY_TOKENS, TITLE_TOKENS, AlignmentSampler, ObjectTexts

SEEN = 500
AT_ONCE = 128
BEAM, LISTED = 50, 10
DEPTHS = {"1": 1, "2": 2, "full": None}  # of a category path

Objects = NDArray[np.int64]


def measure(backbone: Backbone, sentences: AlignmentSampler, seed: int) -> dict[str, dict[str, Any]]:
    """Figures of both groups, see `_group`; ``seed`` draws the sample of `SEEN` ads."""
    backbone.eval()
    ads = np.unique(sentences.logs.ad_object_A).astype(np.int64)
    known = ads[sentences.known_O[ads]]
    sample = np.sort(np.random.default_rng(seed).permutation(known)[:SEEN])
    groups = {"seen": sample, "new": np.setdiff1d(ads, known)}
    return {name: _group(backbone, sentences, objects, ads, known) for name, objects in groups.items()}


def _group(
    backbone: Backbone, sentences: AlignmentSampler, objects: Objects, ads: Objects, known: Objects
) -> dict[str, Any]:
    """What the model makes of ``objects``. Shares are of those that have the text in question.

    category, category_of_object   share whose path is written exactly, down to a depth, asked by codes or by object
    majority                       the same for whoever answers with the commonest category of the known ads
    known_category                 share whose full path some known ad has: nobody can know the others
    title_f1                       mean token F1 of the title written
    recall@10                      share of the ads found among the first ten of the whole catalogue, asked by title
    """
    catalogue = sentences.catalogue
    figures: dict[str, Any] = {"objects": len(objects)}
    labelled = objects[[bool(catalogue.paths[o]) for o in objects]]
    truth = [_path(catalogue, catalogue.category(catalogue.paths[o])) for o in labelled]
    for name, phrasing in (("category", CATEGORY_OF), ("category_of_object", CATEGORY_OF_OBJECT)):
        written = _ask(backbone, catalogue, phrasing, labelled, CATEGORY_TOKENS)
        figures[name] = _by_depth(truth, [_path(catalogue, ids) for ids in written])
    of_known = [_path(catalogue, catalogue.category(catalogue.paths[o])) for o in known if catalogue.paths[o]]
    figures["majority"] = {
        name: _share([path[:depth] == _commonest(of_known, depth) for path in truth]) for name, depth in DEPTHS.items()
    }
    figures["known_category"] = _share([path in set(of_known) for path in truth])
    titled = objects[["title" in catalogue.values(o) for o in objects]]
    titles = [catalogue.values(o)["title"] for o in titled]
    written = _ask(backbone, catalogue, TITLE_OF, titled, TITLE_TOKENS)
    figures["title_f1"] = _share([token_f1(a, b) for a, b in zip(written, titles, strict=True)])
    figures[f"recall@{LISTED}"] = _share(_found(backbone, sentences, titled, ads))
    return figures


def _by_depth(truth: Sequence[Sequence[str]], written: Sequence[Sequence[str]]) -> dict[str, float]:
    return {
        name: _share([a[:depth] == b[:depth] for a, b in zip(truth, written, strict=True)])
        for name, depth in DEPTHS.items()
    }


def _share(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else 0.0


def _commonest(paths: Sequence[tuple[str, ...]], depth: int | None) -> tuple[str, ...]:
    counts = Counter(path[:depth] for path in paths)
    return max(counts, key=lambda path: (counts[path], path), default=())


def _path(catalogue: ObjectTexts, ids: Ids) -> tuple[str, ...]:
    """A category path out of its words; both sides are cut alike, so what was cut compares equal."""
    return tuple(part.strip() for part in catalogue.prompter.render(ids).split(" > "))


def token_f1(written: Ids, truth: Ids) -> float:
    """Harmonic mean of precision and recall of tokens, counted as often as they stand there."""
    common = (Counter(written.tolist()) & Counter(truth.tolist())).total()
    return 2 * common / (len(written) + len(truth)) if common else 0.0


def _ask(backbone: Backbone, catalogue: ObjectTexts, phrasing: Phrasing, objects: Objects, most: int) -> list[Ids]:
    """What the model writes of each object."""
    codes_and_object = ({n: v for n, v in catalogue.values(o).items() if n in ("codes", "object")} for o in objects)
    prompts = [catalogue.write(Phrasing(phrasing.question), values)[0] for values in codes_and_object]
    return greedy(backbone, prompts, catalogue.stop, most)


def _found(backbone: Backbone, sentences: AlignmentSampler, objects: Objects, ads: Objects) -> list[float]:
    """Whether each object is among the first ads of the whole catalogue when asked for by its title."""
    live, catalogue = sentences.live, sentences.catalogue
    trie = build(live.codes_OL[ads], live.sizes, None if live.rates_O is None else live.rates_O[ads])
    searcher, hits = BeamSearcher(backbone), list[float]()
    for start in range(0, len(objects), AT_ONCE):
        batch = objects[start : start + AT_ONCE]
        prompts = [catalogue.write(ID_OF_TITLE, catalogue.values(o))[0] for o in batch]
        asked = [(ids, [BeamRequest(len(ids) - 1, trie, ads)]) for ids in prompts]
        for o, (answer,) in zip(batch, searcher(asked, BeamPolicy(BEAM)), strict=True):
            hit = np.isin(ads[answer.rows[:LISTED]], o)[None]
            hits.append(float(metrics.recall_at(hit, np.ones(1, np.int64), LISTED)[0]))
    return hits


def greedy(backbone: Backbone, prompts: Sequence[Ids], stop: int, most: int) -> list[Ids]:
    """The likeliest word after each prompt, again and again, up to ``stop`` (left out) or to ``most`` words."""
    found: list[Ids] = [np.zeros(0, np.int32)] * len(prompts)
    order = np.argsort([len(ids) for ids in prompts], kind="stable")
    lengths = np.array([len(prompts[i]) for i in order])
    for start, end in _runs(lengths):
        batch = order[start:end]
        words_BT = _continue(backbone, np.stack([prompts[i] for i in batch]), stop, most)
        for i, words in zip(batch.tolist(), words_BT, strict=True):
            found[i] = words[: int(np.argmax(words == stop))] if stop in words else words
    return found


def _runs(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Slices of at most `AT_ONCE` equal lengths: without padding nothing has to be masked."""
    cuts = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
    return [(at, min(at + AT_ONCE, end)) for start, end in pairwise(cuts.tolist()) for at in range(start, end, AT_ONCE)]


@torch.no_grad()
def _continue(backbone: Backbone, prompts_BT: Ids, stop: int, most: int) -> Ids:
    """Words int32 [B, up to ``most``] after prompts of equal length; what stands behind a stop means nothing."""
    from transformers import DynamicCache

    cache, ids_BT = DynamicCache(), torch.from_numpy(prompts_BT.astype(np.int64)).to(backbone.device)
    count, length = ids_BT.shape

    def read(ids_BT: Tensor, start: int, causal_until: int) -> Tensor:
        end = start + ids_BT.shape[1]
        positions_BT = torch.arange(start, end, device=ids_BT.device).expand(count, -1)
        sees_all = torch.ones(count, end - start - causal_until, end, dtype=torch.bool, device=ids_BT.device)
        hidden_BTD: Tensor = backbone(ids_BT, positions_BT, sees_all, causal_until, cache)
        return hidden_BTD[:, -1]

    hidden_BD, written = read(ids_BT, 0, length), list[Tensor]()
    is_open_B = torch.ones(count, dtype=torch.bool, device=ids_BT.device)
    for step in range(most):
        written.append(backbone.word_logits(hidden_BD).argmax(-1))
        is_open_B &= written[-1] != stop
        if not is_open_B.any():
            break
        hidden_BD = read(written[-1][:, None], length + step, 0)
    return torch.stack(written, 1).cpu().numpy().astype(np.int32)
