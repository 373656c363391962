"""Learning rate schedulers as pure functions `(step, steps) -> factor`, which multiplies `optimizer.lr`.

`step` counts from 0 to `steps - 1`. They have no state to save, so a resumed training has the same learning rates;
`callbacks.ReduceLROnPlateau`, which goes by a metric, has one. A fraction of the steps is rounded to whole steps.
`final_factor` is reached one step *after* the last, so that no step is wasted on a learning rate of zero.
"""

from math import cos, pi

from cifar_pipeline.utils.errors import UserError


def constant(step: int, steps: int, *, warmup_fraction: float) -> float:
    """Return 1, after a linear warmup over the first `warmup_fraction` (0 to 1) of all steps.

    Raises:
        UserError: `warmup_fraction` is not between 0 and 1.
    """
    warmup_steps = _warmup_steps(steps, warmup_fraction)
    return _warmup_factor(step, warmup_steps) if step < warmup_steps else 1.0


def cosine(step: int, steps: int, *, warmup_fraction: float, final_factor: float) -> float:
    """Decay along half a cosine from 1 to `final_factor`, after a linear warmup.

    The warmup takes the first `warmup_fraction` (0 to 1) of all steps.

    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2016, equation 5, one period.

    Raises:
        UserError: `warmup_fraction` is not between 0 and 1, or `final_factor` is negative.
    """
    warmup_steps = _warmup_steps(steps, warmup_fraction)
    _reject_negative("final_factor", final_factor)
    if step < warmup_steps:
        return _warmup_factor(step, warmup_steps)
    return final_factor + (1 - final_factor) * (1 + cos(pi * _progress(step, warmup_steps, steps))) / 2


def one_cycle(step: int, steps: int, *, warmup_fraction: float, initial_factor: float, final_factor: float) -> float:
    """Rise linearly from `initial_factor` to 1, then fall linearly to `final_factor`.

    The rise takes the first `warmup_fraction` (0 to 1) of all steps.

    L. Smith and N. Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2017.

    Raises:
        UserError: `warmup_fraction` is not between 0 and 1, `initial_factor` is not positive, or `final_factor` is
            negative.
    """
    warmup_steps = _warmup_steps(steps, warmup_fraction)
    _reject_negative("final_factor", final_factor)
    if not initial_factor > 0:
        raise UserError(f"scheduler.initial_factor={initial_factor} must be positive, or the first step has no effect.")
    if step < warmup_steps:
        return initial_factor + (1 - initial_factor) * step / warmup_steps
    return 1 + (final_factor - 1) * _progress(step, warmup_steps, steps)


def _warmup_steps(steps: int, warmup_fraction: float) -> int:
    if not 0 <= warmup_fraction <= 1:
        raise UserError(
            f"scheduler.warmup_fraction={warmup_fraction} must be between 0 and 1, as a fraction of all steps."
        )
    return round(warmup_fraction * steps)


def _warmup_factor(step: int, warmup_steps: int) -> float:
    """Return the factor of a warmup step, which rises from 0 one step before the first to 1 after the warmup."""
    return (step + 1) / (warmup_steps + 1)


def _progress(step: int, warmup_steps: int, steps: int) -> float:
    """Return the progress after the warmup: 0 at its first step, 1 one step after the last."""
    return min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)


def _reject_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise UserError(
            f"scheduler.{name}={value} must be 0 or more, because a negative learning rate increases the loss."
        )
