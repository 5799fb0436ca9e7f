"""A pytest plugin that writes how each test ended, and which SQLAlchemy it ran on, to the file ``--outcomes``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy

if TYPE_CHECKING:
    import pytest
    from _pytest.reports import TestReport


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the file's name."""
    parser.addoption("--outcomes", type=Path, required=True)


class Recorder:
    """Keeps the worst that each test came to: passed, skipped, failed, error (outside the test itself)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: TestReport) -> None:
        """Note what a set-up, a test or a tear-down came to."""
        if report.when == "call" or report.outcome != "passed":
            outcome = "error" if report.failed and report.when != "call" else report.outcome
            before = self._outcomes.get(report.nodeid)
            if before is None or before[0] == "passed":
                self._outcomes[report.nodeid] = (outcome, report.longreprtext[-1000:])

    def pytest_sessionfinish(self) -> None:
        """Write it all down."""
        self._path.write_text(json.dumps({"sqlalchemy": sqlalchemy.__file__, "outcomes": self._outcomes}))


def pytest_configure(config: pytest.Config) -> None:
    """Begin to listen."""
    config.pluginmanager.register(Recorder(config.getoption("--outcomes")))
