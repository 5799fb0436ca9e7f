"""The same limit is hidden to the check and to the dashboard's table."""

from __future__ import annotations

import json
import re
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from panels_support import TARGETS, promtool
from poolwatch.catalog import PREFIX
from test_checks import CASES

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.tooling

# The table's column, with every pool and process chosen.
(HIDDEN,) = (
    re.sub(r'[a-z]+=~"\$[a-z]+",? ?', "", target["expr"])
    for target in TARGETS.values()
    if "shortest_fatal" in target["expr"] and "longest_survived" in target["expr"]
)


def series(name: str, value: float | None, labels: str) -> list[dict[str, str]]:
    """Return the series of one sample, none where it is absent."""
    metric = f'{PREFIX}{name}{{job="api", instance="a", {labels}}}'
    return [] if value is None else [{"series": metric, "values": "+Inf" if value == inf else str(value)}]


def test_alike(tmp_path: Path) -> None:
    """Protects readers from a table that shows a hidden limit where no problem is reported, or the other way round."""
    wrong, right = CASES["hidden_limit"]
    given: list[dict[str, str]] = []
    expected: list[dict[str, Any]] = []
    for number, changes in enumerate((*wrong, *right)):
        fatal, limit = changes.get("fatal"), changes.get("idle_limit", inf)
        given += series("shortest_fatal_inactivity_seconds", fatal, f'pool="{number}"')
        given += series("inactivity_limit_seconds", limit, f'pool="{number}", source="wait_timeout"')
        if changes in wrong:
            expected.append({"labels": f'{{job="api", pool="{number}"}}', "value": fatal})
    asked = {"expr": HIDDEN, "eval_time": "0m", "exp_samples": expected}
    path = tmp_path / "hidden.tests.yml"
    # JSON is YAML.
    path.write_text(
        json.dumps({"tests": [{"interval": "1m", "input_series": given, "promql_expr_test": [asked]}]}),
        encoding="utf-8",
    )
    answer = promtool("test", "rules", path)
    assert 0 == answer.returncode, answer.stdout + answer.stderr
