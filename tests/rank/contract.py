"""The contract suite of neural rankers; test_models.py runs it for each of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from leadre.rank import measure, train
from leadre.rank.inputs import Positions, collate
from leadre.rank.models.shared import Ranker
from leadre.rank.rows import examples as rows_of
from leadre.rank.train import Training

from .conftest import CONTENT_OF_LAW, LAW, planted

CLOSE = 2e-5


def alone(ranker, spec, params, request):
    """Log-odds [C, H] of one request by itself."""
    return train.logits(ranker, spec, params, collate([request]))[0, : len(request.is_new_C)]


def candidates(request, places):
    """The request with some of its candidates, in the order given."""
    parts = {name: getattr(request, name)[places] for name in ("number_CF", "field_CK", "content_C", "is_new_C")}
    return dataclasses.replace(request, **parts)


def repeated(request, times):
    """The request with each position of its sequences several times."""
    sequences = {
        name: Positions(**{f.name: np.repeat(getattr(part, f.name), times, axis=0) for f in dataclasses.fields(part)})
        for name, part in request.sequences.items()
    }
    return dataclasses.replace(request, sequences=sequences)


def logits(ranker, params, spec, examples):
    """Log-odds [R, C, H] of examples with equally many candidates."""
    return train.logits(ranker, spec, params, collate([row.inputs for row in examples]))


def drawn(ranker, spec, seed=0):
    """Parameters of the start with noise in all of them, so that no part is silent."""
    rng = np.random.default_rng(seed)
    initial = ranker.init(spec, rng)
    return {
        name: values if name.startswith("fixed.") else values + rng.normal(0, 0.3, values.shape).astype(np.float32)
        for name, values in initial.items()
    }


class RankerContract:
    """Subclasses give `ranker`."""

    ranker: Ranker

    @pytest.fixture(scope="class")
    @classmethod
    def params(cls, market, examples):
        params, _ = train.fit(
            cls.ranker, market.spec, examples, examples, Training(epochs=1, batch=16), 3, market.content_OW
        )
        return params

    def test_padding_order_and_company_change_no_score(self, market, examples, params):
        requests = [row.inputs for row in examples[:12]]
        singles = [alone(self.ranker, market.spec, params, request) for request in requests]
        together = train.logits(self.ranker, market.spec, params, collate(requests))
        for scores, single in zip(together, singles, strict=True):
            np.testing.assert_allclose(scores[: len(single)], single, atol=CLOSE)
        order = np.random.default_rng(0).permutation(len(requests[0].is_new_C))
        shuffled = alone(self.ranker, market.spec, params, candidates(requests[0], order))
        np.testing.assert_allclose(shuffled, singles[0][order], atol=CLOSE)
        np.testing.assert_array_equal(alone(self.ranker, market.spec, params, requests[0]), singles[0])

    def test_user_once_equals_row_by_row(self, market, examples, params):
        request = examples[5].inputs
        scores = alone(self.ranker, market.spec, params, request)
        one_by_one = [
            alone(self.ranker, market.spec, params, candidates(request, [place]))[0] for place in range(len(scores))
        ]
        np.testing.assert_allclose(scores, one_by_one, atol=CLOSE)

    def test_torch_and_numpy_give_the_same_scores(self, market, examples, params):
        batch = collate([row.inputs for row in examples[:8]])
        expected = train.logits(self.ranker, market.spec, params, batch)
        tensors = {name: torch.from_numpy(values) for name, values in params.items()}
        as_tensors = train.as_tensors(batch)
        state = self.ranker.user(tensors, market.spec, as_tensors)
        scores = self.ranker.score(tensors, market.spec, state, as_tensors).numpy()
        np.testing.assert_allclose(scores[batch.mask_RC], expected[batch.mask_RC], atol=CLOSE)

    def test_unseen_values_empty_history_and_one_candidate_are_scored(self, market, examples, params):
        request = candidates(examples[0].inputs, [0])
        fields = len(market.spec.fields)
        nothing = Positions(
            field_TK=np.zeros((0, fields), np.int32),
            content_T=np.zeros(0, np.int32),
            gap_T=np.zeros(0, np.int32),
            count_T=np.zeros(0, np.float32),
        )
        empty = dataclasses.replace(request, sequences=dict.fromkeys(request.sequences, nothing))
        beyond = dataclasses.replace(
            empty, field_CK=np.full((1, fields), 10**6, np.int32), user_P=np.full_like(empty.user_P, 10**6)
        )
        unseen = dataclasses.replace(
            empty, field_CK=np.zeros((1, fields), np.int32), user_P=np.zeros_like(empty.user_P)
        )
        scores = [alone(self.ranker, market.spec, params, part) for part in (empty, beyond, unseen)]
        assert all(np.isfinite(part).all() and part.shape == (1, 1) for part in scores)
        np.testing.assert_array_equal(scores[1], scores[2])

    def test_spec_without_user_and_context_is_trained_and_scored(self, market, examples):
        spec = dataclasses.replace(market.spec, profile=(), context=())
        rows = [
            dataclasses.replace(row, inputs=dataclasses.replace(row.inputs, user_P=np.zeros(0, np.int32)))
            for row in examples[:2]
        ]
        params, _ = train.fit(self.ranker, spec, rows, rows, Training(epochs=1), 0, market.content_OW)
        batch = collate([row.inputs for row in rows])
        assert np.isfinite(train.logits(self.ranker, spec, params, batch)[batch.mask_RC]).all()

    def test_planted_pair_law_is_learnt(self):
        rows = planted(1200, seed=1)
        held_out = planted(300, seed=2)
        training = Training(epochs=7, batch=32, learning_rate=3e-3, table_rate=1e-2, patience=7)  # 266 steps
        params, _ = train.fit(self.ranker, LAW, rows, held_out, training, 0, CONTENT_OF_LAW)
        label = np.concatenate([row.label_CH[:, 0] for row in held_out])
        score = np.concatenate([alone(self.ranker, LAW, params, row.inputs)[:, 0] for row in held_out])
        assert measure.auc(label, score) > 0.8

    def test_gradient_reaches_every_parameter(self, market, examples):
        initial = self.ranker.init(market.spec, np.random.default_rng(0))
        params = {
            name: torch.from_numpy(values).requires_grad_(not name.startswith("fixed."))
            for name, values in initial.items()
        }
        batch = train.as_tensors(collate([row.inputs for row in examples]))
        scores = self.ranker.score(params, market.spec, self.ranker.user(params, market.spec, batch), batch)
        (scores[batch.mask_RC] ** 2).sum().backward()
        trained = {name: value.grad for name, value in params.items() if value.requires_grad}
        idle = [name for name, gradient in trained.items() if gradient is None or not gradient.any()]
        assert not idle

    def test_future_events_change_no_score(self, market, examples, params):
        logs = market.logs
        for row in examples[:10]:
            user = logs.request_user_R[row.request]
            objects = logs.object_E.copy()
            future = slice(logs.history_end(row.request), logs.event_offsets[user + 1])
            objects[future] = (objects[future] + 1) % len(logs.objects)
            changed = dataclasses.replace(logs, object_E=objects)
            (again,) = rows_of(
                changed,
                np.array([row.request]),
                changed.inventory,
                market.spec,
                market.known,
                market.popularity,
                negatives=1.0,
                seed=0,
            )
            np.testing.assert_array_equal(
                alone(self.ranker, market.spec, params, again.inputs),
                alone(self.ranker, market.spec, params, row.inputs),
            )

    def test_same_seed_gives_the_same_bytes(self, market, examples):
        training = Training(epochs=1, batch=16)
        first, second, other = (
            train.fit(self.ranker, market.spec, examples[:32], examples[:8], training, seed, market.content_OW)[0]
            for seed in (5, 5, 6)
        )
        assert all(first[name].tobytes() == second[name].tobytes() for name in first)
        assert any(first[name].tobytes() != other[name].tobytes() for name in first)

    def test_heads_do_not_depend_on_their_order(self, market, examples):
        spec = dataclasses.replace(market.spec, labels=("click", "conversion"))
        params = self.ranker.init(spec, np.random.default_rng(0))
        swapped = {
            name: values[..., ::-1].copy() if values.shape[-1:] == (2,) else values for name, values in params.items()
        }
        swapped_spec = dataclasses.replace(spec, labels=("conversion", "click"))
        request = examples[3].inputs
        scores = alone(self.ranker, spec, params, request)
        assert scores.shape[1] == 2 and not np.allclose(scores[:, 0], scores[:, 1])
        np.testing.assert_allclose(alone(self.ranker, swapped_spec, swapped, request), scores[:, ::-1], atol=CLOSE)
