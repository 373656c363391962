"""Nested mappings are flattened to dotted keys, which MLflow's parameters and metrics use."""

from cifar_pipeline.utils.text import flatten_dict


def test_leaves_are_named_by_their_path() -> None:
    assert flatten_dict({"a": {"b": {"c": 1}}, "d": [1, 2], "e": None}) == {"a.b.c": 1, "d": [1, 2], "e": None}
    assert flatten_dict({"test": {"accuracy": 0.5}}, "/") == {"test/accuracy": 0.5}
