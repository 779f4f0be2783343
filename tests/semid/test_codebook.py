"""Every object its own ID, old IDs never move, a full prefix overflows into the next nearest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import artifact
from leadre.errors import InputError
from leadre.semid import codebook as codebooks
from leadre.semid.quantiser import Quantiser


def line_quantiser() -> Quantiser:
    """Vectors on a line: level 1 names the ten (0, 10, 20), level 2 the rest (-2, 0, 2)."""
    return Quantiser(
        centroids=(
            np.array([[0.0], [10.0], [20.0]], dtype=np.float32),
            np.array([[-2.0], [0.0], [2.0]], dtype=np.float32),
        )
    )


def line_book(values: list[float], ids: list[str], slots: int = 4) -> codebooks.Codebook:
    vectors = np.array(values, dtype=np.float32)[:, None]
    return codebooks.fit(ids, vectors, line_quantiser(), slots, text_width=1)


def test_slots_follow_object_ids_and_rows_follow_the_input():
    book = line_book([10.1, 0.0, 10.2, 9.9], ["d", "a", "c", "b"])
    assert book.codes_OL.tolist() == [[1, 1, 2], [0, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert book.sizes == (3, 3, 4)
    assert book.rows(["c", "d"]).tolist() == [2, 0]


def test_a_new_object_takes_the_free_slot_and_old_rows_stay():
    book = line_book([10.0, 10.0], ["b", "c"])
    grown = book.encode(np.array([[10.3], [22.0]], dtype=np.float32), ["a", "z"])
    assert grown.object_ids == ("b", "c", "a", "z")
    assert grown.codes_OL.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 2], [2, 2, 0]]
    assert book.codes_OL.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert grown.version != book.version
    assert grown.quantiser.version == book.quantiser.version


def test_an_object_that_has_an_id_keeps_it():
    book = line_book([10.0, 0.0], ["a", "b"])
    assert book.encode(np.array([[20.0]], dtype=np.float32), ["a"]) is book
    grown = book.encode(np.array([[20.0], [20.0]], dtype=np.float32), ["b", "c"])
    assert grown.codes_OL.tolist() == [[1, 1, 0], [0, 1, 0], [2, 1, 0]]


def test_a_full_prefix_overflows_into_the_nearest_with_room():
    # 10.4 x 3 with two slots: the third gets 12 (distance 1.6) before 8 (2.4)
    book = line_book([10.4, 10.4, 10.4], ["a", "b", "c"], slots=2)
    assert book.codes_OL.tolist() == [[1, 1, 0], [1, 1, 1], [1, 2, 0]]
    assert book.moved == 1
    # those at home in 12 come first: the homeless are placed after everybody else
    mixed = line_book([10.4, 10.4, 10.4, 12.0, 12.0], ["a", "b", "c", "x", "y"], slots=2)
    assert mixed.codes_OL.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 2, 0], [1, 2, 1]]


def test_a_full_branch_overflows_into_the_one_beside_it():
    # five at 10.1 with one slot each: 10, 12, 8, and then the branch of 20 (nearer than 0): 18, 20
    book = line_book([10.1] * 5, list("abcde"), slots=1)
    assert book.codes_OL.tolist() == [[1, 1, 0], [1, 2, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]]


def test_no_room_anywhere_teaches():
    with pytest.raises(InputError, match="all 3 x 3 x 1 IDs are taken; give --collisions more than 1"):
        line_book([10.0 + n / 1000 for n in range(10)], list("abcdefghij"), slots=1)


def test_equal_texts_need_collisions_and_no_larger_levels():
    with pytest.raises(InputError, match=r"10 objects have 1 different texts, .* or --collisions 2"):
        line_book([10.0] * 10, list("abcdefghij"), slots=1)


def test_an_id_twice_is_refused():
    with pytest.raises(InputError, match="'a' is there twice"):
        line_book([1.0, 2.0], ["a", "a"])
    with pytest.raises(InputError, match="'n' is there twice"):
        line_book([1.0], ["a"]).encode(np.zeros((2, 1), np.float32), ["n", "n"])


def test_unknown_object_teaches():
    with pytest.raises(InputError, match="1 objects have no semantic ID, 'q' among them"):
        line_book([1.0], ["a"]).rows(["a", "q"])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), first=st.integers(1, 20), later=st.integers(0, 12))
def test_paths_are_unique_and_stable_under_additions(seed, first, later):
    values = np.random.default_rng(seed).choice([0.0, 9.0, 10.0, 11.0, 20.0], size=first + later)
    book = line_book(values[:first].tolist(), [f"o{i:02d}" for i in range(first)], slots=12)
    grown = book.encode(values[first:, None].astype(np.float32), [f"n{i:02d}" for i in range(later)])
    assert len(np.unique(grown.codes_OL, axis=0)) == first + later
    assert np.array_equal(grown.codes_OL[:first], book.codes_OL)
    assert np.all(grown.codes_OL < grown.sizes) and grown.codes_OL.min() >= 0


def test_codes_of_new_objects_read_columns_predicted_from_their_text():
    quantiser = Quantiser(centroids=(np.array([[1.0, 0.0], [1.0, 5.0]], dtype=np.float32),))
    vectors = np.array([[1.0, 4.0], [1.0, 0.0]], np.float32)  # the second has no events, so it is no neighbour
    book = codebooks.fit(["a", "b"], vectors, quantiser, 4, text_width=1)
    assert book.complete(np.array([[1.0]], dtype=np.float32)).tolist() == [[1.0, 4.0]]
    grown = book.encode(np.array([[1.0]], dtype=np.float32), ["new"])
    assert grown.codes_OL.tolist() == [[1, 0], [0, 0], [1, 1]]
    # stored without them: later objects have neighbours with events only
    assert grown.embeddings_OD.tolist() == [[1.0, 4.0], [1.0, 0.0], [1.0, 0.0]]
    assert grown.complete(np.array([[1.0, 2.0]], dtype=np.float32)).tolist() == [[1.0, 2.0]]


def test_save_and_load(tmp_path):
    book = line_book([10.0, 0.0, 10.0], ["ä", "b", "c"])
    with artifact.create(tmp_path / "semid", kind=artifact.CODEBOOK, config={}, seed=0, parents=[]) as folder:
        book.save(folder)
    again = codebooks.load(artifact.read(tmp_path / "semid", artifact.CODEBOOK))
    assert again.version == book.version
    assert again.object_ids == book.object_ids and again.sizes == book.sizes
    assert np.array_equal(again.codes_OL, book.codes_OL)
    assert np.array_equal(again.embeddings_OD, book.embeddings_OD)
    assert np.array_equal(again.encode(np.zeros((1, 1), np.float32), ["n"]).codes_OL[-1], [0, 1, 1])
