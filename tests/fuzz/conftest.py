"""How many cases are tried: some hundreds in all, and thousands in the long run; the same ones each time."""

from datetime import timedelta

from hypothesis import HealthCheck, settings

LONGEST = timedelta(seconds=5)  # of one case: what hangs is a fault
settings.register_profile(
    "here",
    derandomize=True,
    database=None,
    deadline=LONGEST,
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("here")
