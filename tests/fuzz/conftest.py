"""Set up Hypothesis: the same examples in each run, with a time limit for each."""

from datetime import timedelta

from hypothesis import HealthCheck, settings

DEADLINE = timedelta(seconds=5)  # per example
settings.register_profile(
    "deterministic",
    derandomize=True,
    database=None,
    deadline=DEADLINE,
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("deterministic")
