"""No average over the weights: the choice of most recipes.

A file of its own, because `configure` imports what is chosen, and Lightning, whose callbacks the averages are, takes
seconds.
"""


def unaveraged() -> None:
    """No average: the last weights are the model."""
