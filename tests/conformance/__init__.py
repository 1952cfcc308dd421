"""What every bus driver does alike: the behaviour lives once in the suites, a driver brings a harness.

A new driver adds ``test_<name>.py`` with a harness and three classes that inherit the suites.
"""

import pytest

pytest.register_assert_rewrite(
    "tests.conformance.harness",
    "tests.conformance.members",
    "tests.conformance.delivery",
    "tests.conformance.ownership",
    "tests.conformance.retention",
)
