"""Settings of the property-based tests: the same examples in every run, and no wall clock."""

from hypothesis import settings

settings.register_profile("bar", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("bar")
