"""Pickles that try to do more than hold arrays of bytes."""

import os
import pickle
import warnings

import numpy as np
import pytest

from cifar_pipeline.data.sources.cifar import unpickle


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


def test_the_types_in_cifars_files_are_read():
    data = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = unpickle(pickle.dumps({b"data": data, b"labels": [1, 2], b"name": b"x"}, protocol=2))
    np.testing.assert_array_equal(found[b"data"], data)
    assert found[b"labels"] == [1, 2]
    assert found[b"name"] == b"x"


def test_pickles_of_python_2_are_read():
    new = pickle.dumps({b"data": np.arange(3, dtype=np.uint8)}, protocol=2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    assert old != new
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unpickle(old)[b"data"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("hostile", [Hostile(), {b"data": Hostile()}, {b"f": eval}, {b"f": np.load}])
def test_a_pickle_that_would_run_something_is_refused_and_not_run(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        unpickle(pickle.dumps(hostile, protocol=2))
    assert not list(tmp_path.iterdir())


def test_arrays_of_objects_are_refused():
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        unpickle(pickle.dumps({b"data": np.array([None])}, protocol=2))


def test_a_pickle_without_a_dictionary_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="dictionary"):
        unpickle(pickle.dumps([1], protocol=2))
