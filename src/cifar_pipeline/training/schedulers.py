"""How the learning rate changes over a training: pure functions `(step, steps) -> factor` of the optimizer's own rate.

`step` counts from 0 to `steps - 1`. Being functions of the step alone they have no state to save: a training that is
taken up again has the same rates. A fraction of the steps is rounded to whole steps. Where a curve ends in `final_factor`,
that is its value one step *after* the last, so that no step is wasted on a rate of zero.
"""

from math import cos, pi

from cifar_pipeline.utils.errors import UserError


def constant(step: int, steps: int, *, warmup_fraction: float) -> float:
    """1, after a linear rise over the first `warmup_fraction` (0 to 1) of all steps.

    Raises:
        Refusal: `warmup_fraction` is not between 0 and 1.
    """
    rise = _warmup_steps(steps, warmup_fraction)
    return _warmup_factor(step, rise) if step < rise else 1.0


def cosine(step: int, steps: int, *, warmup_fraction: float, final_factor: float) -> float:
    """Half a cosine from 1 to `final_factor`, after a linear rise over the first `warmup_fraction` (0 to 1) of all steps.

    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2016, equation 5, one period.

    Raises:
        Refusal: `warmup_fraction` is not between 0 and 1, or `final_factor` is negative.
    """
    rise = _warmup_steps(steps, warmup_fraction)
    _reject_negative("final_factor", final_factor)
    if step < rise:
        return _warmup_factor(step, rise)
    return final_factor + (1 - final_factor) * (1 + cos(pi * _progress(step, rise, steps))) / 2


def one_cycle(step: int, steps: int, *, warmup_fraction: float, initial_factor: float, final_factor: float) -> float:
    """A line from `initial_factor` up to 1 over the first `warmup_fraction` (0 to 1) of all steps, then a line down to `final_factor`.

    L. Smith and N. Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2017.

    Raises:
        Refusal: `warmup_fraction` is not between 0 and 1, `initial_factor` is not positive, or `final_factor` is negative.
    """
    rise = _warmup_steps(steps, warmup_fraction)
    _reject_negative("final_factor", final_factor)
    if not initial_factor > 0:
        raise UserError(
            f"scheduler.initial_factor={initial_factor} must be positive: the first step would change nothing."
        )
    if step < rise:
        return initial_factor + (1 - initial_factor) * step / rise
    return 1 + (final_factor - 1) * _progress(step, rise, steps)


def _warmup_steps(steps: int, warmup_fraction: float) -> int:
    """How many steps the rise takes."""
    if not 0 <= warmup_fraction <= 1:
        raise UserError(
            f"scheduler.warmup_fraction={warmup_fraction} must be between 0 and 1: it is a fraction of all steps."
        )
    return round(warmup_fraction * steps)


def _warmup_factor(step: int, rise: int) -> float:
    """A rise whose zero lies one step before the first and whose 1 is the first step after it."""
    return (step + 1) / (rise + 1)


def _progress(step: int, rise: int, steps: int) -> float:
    """From 0 at the first step after the rise to 1 one step after the last."""
    return min((step - rise) / max(steps - rise, 1), 1.0)


def _reject_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise UserError(f"scheduler.{name}={value} must be 0 or more: a negative learning rate climbs the loss.")
