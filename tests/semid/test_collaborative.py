"""Objects bought by the same people lie together; what happens after the training weeks is not read."""

import numpy as np
import pytest

from leadre.errors import InputError
from leadre.semid import collaborative


class FakeLogs:
    """Two tastes: users 0-9 take objects 0-3, users 10-19 objects 4-7. Object 8 comes only in the test weeks."""

    def __init__(self, held_out_us: int = 1000):
        rng = np.random.default_rng(0)
        rows = [
            (user, at, int(rng.integers(0, 4)) + (4 if user >= 10 else 0))
            for user in range(20)
            for at in range(0, 60, 10)
        ]
        late = [(user, 1000 + user, (user % 8, 8)[user % 2]) for user in range(20)]
        rows = sorted(rows + late)
        self.users = range(20)
        self.objects = range(9)
        users_E, self.at_us_E, self.object_E = (np.array(column) for column in zip(*rows, strict=True))
        self.event_offsets = np.searchsorted(users_E, np.arange(21))
        self.request_at_us_R = np.array([0, 5, held_out_us, 2000])
        self.request_split_R = np.array([0, 0, 1, 2], dtype=np.int8)


def test_tastes_separate_and_unseen_objects_are_zero():
    vectors = collaborative.vectors(FakeLogs(), 2, seed=0)
    assert vectors.shape == (9, 2) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors[:8], axis=1), 1, atol=1e-6)
    assert not vectors[8].any()
    likeness = vectors[:8] @ vectors[:8].T
    assert likeness[:4, :4].min() > 0.9 and likeness[4:, 4:].min() > 0.9
    assert likeness[:4, 4:].max() < 0.1


def test_nothing_after_the_first_validation_request_is_read():
    logs = FakeLogs()
    changed = FakeLogs()
    changed.object_E = np.where(changed.at_us_E >= 1000, 3, changed.object_E)
    assert np.array_equal(collaborative.vectors(logs, 3, 0), collaborative.vectors(changed, 3, 0))
    # and the boundary is that request's time: with a later one the same change shows
    later = FakeLogs(5000)
    later_changed = FakeLogs(5000)
    later.request_at_us_R[3] = later_changed.request_at_us_R[3] = 5000
    later_changed.object_E = changed.object_E
    assert not np.array_equal(collaborative.vectors(later, 3, 0), collaborative.vectors(later_changed, 3, 0))


def test_same_seed_same_bytes():
    assert collaborative.vectors(FakeLogs(), 4, 1).tobytes() == collaborative.vectors(FakeLogs(), 4, 1).tobytes()


def test_a_robot_counts_with_its_latest_objects_only(monkeypatch):
    monkeypatch.setattr(collaborative, "LATEST", 2)
    users, objects = collaborative._latest_pairs(np.array([0, 0, 0, 0, 1]), np.array([5, 6, 5, 7, 6]))
    assert sorted(zip(users.tolist(), objects.tolist(), strict=True)) == [(0, 5), (0, 7), (1, 6)]


def test_too_many_columns_teach():
    with pytest.raises(InputError, match="--collaborative-dim 8: wants 1 to 7"):
        collaborative.vectors(FakeLogs(), 8, 0)


def test_prediction_is_the_mean_of_the_nearest_texts_with_events(monkeypatch):
    angles = np.array([0.0, 0.1, 0.2, 0.3, 1.5])
    text = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    columns = np.array([[1], [0], [2], [6], [50]], np.float32)  # the second has no events
    monkeypatch.setattr(collaborative, "CHUNK", 1)  # one text at a time
    assert collaborative.predict(text[[1, 4]], text, columns).tolist() == [[3.0], [np.float32(58 / 3)]]
    assert collaborative.predict(text[:2], text[:2], columns[:2]).tolist() == [[1.0], [1.0]]
    assert collaborative.predict(text[:2], text, np.zeros((5, 3), np.float32)).tolist() == [[0, 0, 0]] * 2
