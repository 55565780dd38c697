"""Options of the test run."""

from __future__ import annotations

from hypothesis import settings

# A machine that is busy elsewhere is no defect of a parser.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the golden expositions anew")
