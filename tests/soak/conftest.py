"""A soak in small runs on a test host like any other."""

from tests.host.conftest import bare, boot, layers, pytest_runtest_makereport

__all__ = ["bare", "boot", "layers", "pytest_runtest_makereport"]
