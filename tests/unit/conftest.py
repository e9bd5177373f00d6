"""Property tests draw the same examples everywhere, so a build fails for what changed in it."""

from hypothesis import settings

settings.register_profile("unit", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("unit")
