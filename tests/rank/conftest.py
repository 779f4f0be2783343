"""A small market with its ranking rows, and requests of a planted law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import sparse

from leadre.data import collaborative, histories, world
from leadre.data.histories import TRAIN, Logs
from leadre.rank import inputs, rows
from leadre.rank.inputs import Positions, RequestInputs, Vocabulary
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec, SequenceSpec


@dataclass(frozen=True)
class Market:
    """Logs with empty requests, the spec and vocabulary of their features, count tables that end at ``from_us``."""

    logs: Logs
    spec: FeatureSpec
    known: Vocabulary
    popularity: rows.Popularity
    requests: np.ndarray
    content_OW: np.ndarray


@pytest.fixture(scope="session")
def market():
    tables = world.read(seed=4, users=40, ads=40, contents=12)
    logs = histories.of_tables(tables, "conversion", empty=True)
    objects = len(logs.objects)
    factors = np.random.default_rng(0).normal(size=(objects, 4)).astype(np.float32)
    nothing = sparse.csr_matrix((objects, objects), dtype=np.float32)
    scores = collaborative.Collaborative(factors_OD=factors, regularisation=1.0, alpha=0.1, similarity_OO=nothing)
    codes = np.random.default_rng(1).integers(0, 4, (objects, 2)).astype(np.int32)
    known, fields, sizes = inputs.vocabulary(logs, np.arange(objects) % 5 > 0, codes)
    spec = FeatureSpec(
        labels=("conversion",),
        rows="live",
        negatives=0.5,
        popularity="frozen",
        fields=fields,
        profile=tuple(known.profile),
        tables=sizes,
    )
    spec.check()
    requests = rows.period(logs, TRAIN, 0.5, 1)
    from_us = int(logs.request_at_us_R[requests].min())
    popularity = rows.Popularity(logs, scores, from_us, is_fresh=False)
    return Market(logs, spec, known, popularity, requests, factors)


@pytest.fixture(scope="session")
def examples(market):
    """The rows of 60 requests, all candidates."""
    examples = rows.examples(
        market.logs,
        market.requests[:60],
        market.logs.inventory,
        market.spec,
        market.known,
        market.popularity,
        negatives=1.0,
        seed=0,
    )
    return list(examples)


LAW = FeatureSpec(
    labels=("click",),
    rows="shown",
    negatives=1.0,
    popularity="frozen",
    numbers=("own",),
    fields=("object", "category"),
    context=("hour",),
    sequences=(SequenceSpec(name="ad_short", domain="ad", is_distinct=False, length=8),),
    tables={"object": 40, "category": 6, "hour": 25},
)


CONTENT_OF_LAW = np.eye(5, dtype=np.float32)[np.arange(40) % 5]  # objects of a category look alike


def planted(requests: int, seed: int) -> list[Example]:
    """Requests of 8 candidates; a user acts on objects of the one category of the history, rarely on others."""
    rng = np.random.default_rng(seed)
    category_O = np.arange(40) % 5 + 1
    examples = []
    for r in range(requests):
        liked = rng.integers(1, 6)
        history = rng.choice(np.flatnonzero(category_O == liked), size=rng.integers(1, 9))
        ads = rng.choice(40, 8, replace=False)
        p = np.where(category_O[ads] == liked, 0.8, 0.05)
        part = Positions(
            field_TK=np.stack([history, category_O[history]], axis=1).astype(np.int32),
            content_T=(history + 1).astype(np.int32),
            gap_T=np.full(len(history), 9, np.int32),
            count_T=np.zeros(len(history), np.float32),
        )
        features = RequestInputs(
            number_CF=np.zeros((8, 1), np.float32),
            field_CK=np.stack([ads, category_O[ads]], axis=1).astype(np.int32),
            content_C=(ads + 1).astype(np.int32),
            user_P=np.array([rng.integers(1, 25)], np.int32),
            sequences={"ad_short": part},
            is_new_C=np.ones(8, np.bool_),
        )
        examples.append(
            Example(request=r, ads=ads.astype(np.int32), label_CH=rng.random((8, 1)) < p[:, None], inputs=features)
        )
    return examples
