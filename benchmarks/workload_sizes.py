"""Workload sizes of `make bench`, and of its smoke test."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sizes:
    """Number of images, steps and repetitions. `whole_epochs` is a step limit: 0 is a whole epoch."""

    images: int = 45_000
    repetitions: int = 3
    steady_repetitions: int = 2  # for values that differ by a few percent
    whole_epochs: int = 0
    tutorial_steps: int = 600
    lightning_steps: int = 400
    scan_steps: int = 1_000
    small_batch: int = 32
    large_batch: int = 256
    large_steps: int = 120
    usual_large_steps: int = 40
    network_batch: int = 128
    network_steps: int = 12
    fine_tuning_batch: int = 64
    neighbours: tuple[int, ...] = (1, 2)
    neighbour_seconds: float = 8
    recipe_steps: int = 8
    recipe_batches: dict[str, int] = field(
        default_factory=lambda: {"quick": 128, "lenet_tuned": 128, "airbench94": 500}
    )
    sweep_steps: int = 500
    overhead_trials: int = 12
    overhead_steps: int = 600
    predicted_files: int = 10_000
    requests: int = 100
    image_files: int = 6_000
    large_image_files: int = 2_000
    engine: str = "compiled"


TINY = Sizes(
    images=200,
    repetitions=1,
    steady_repetitions=1,
    whole_epochs=3,
    tutorial_steps=1,
    lightning_steps=1,
    scan_steps=2,
    small_batch=4,
    large_batch=8,
    large_steps=3,
    usual_large_steps=1,
    network_batch=4,
    network_steps=1,
    fine_tuning_batch=4,
    neighbours=(1,),
    neighbour_seconds=0,
    recipe_steps=1,
    recipe_batches={"quick": 8, "lenet_tuned": 8, "airbench94": 8},
    sweep_steps=2,
    overhead_trials=2,
    overhead_steps=4,
    predicted_files=10,
    requests=2,
    image_files=60,
    large_image_files=60,
    engine="eager",
)
