"""The dashboard of a whole fleet: it stays readable, and the one that reads recorded series shows the same."""

from __future__ import annotations

import re
import time
from math import inf
from typing import TYPE_CHECKING

import pytest

from fleets import Fleet, Job, Pool
from generator.dashboard import build
from generator.options import DEFAULT, Options
from generator.rules import alerting, recorded, serving
from generator.rules.model import Record
from histories import History, queries
from poolwatch.catalog import CATALOG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from histories import Asked

pytestmark = pytest.mark.tooling

RAW = {asked.name: asked for asked in queries(build(DEFAULT))}
KEPT = {asked.name: asked for asked in queries(build(Options(recorded=True)))}
DIFFERENT = [name for name, asked in RAW.items() if asked.expr != KEPT[name].expr]
# More lines or rows than that, nobody reads.
MOST = 30
SECONDS = 1500
SHOP = {"job": "api", "namespace": "shop"}
ROOMY = Pool(recycle=1800, most=30)
OTHERS = (ROOMY, Pool("reports", most=inf, limits=(("wait_timeout", inf),)), Pool("jobs", limits=()))
# A roll-out is on in one cluster, which has the fullest processes. Another job's series have no label for clusters.
JOBS = (
    Job(SHOP | {"cluster": "eu"}, 14, replaced=14),
    Job(SHOP | {"cluster": "us"}, 13, (ROOMY,)),
    Job({"job": "worker"}, 11, OTHERS),
    Job(SHOP | {"job": "young"}, 6, young=10),
)
# Rates at the edges of the time shown reach over them.
NEARLY = 0.05
record = re.compile(r"\b[a-z_]+:\w+:\w+")


@pytest.fixture(scope="module")
def history() -> Iterator[History]:
    """Return a Prometheus with the last half hour of 40 processes."""
    # One block of two hours holds all of it.
    end = int(time.time()) // 7200 * 7200 - 60
    with History(Fleet(JOBS, end=end, scrapes=SECONDS // 60 + 8, unsteady=0.3), seconds=SECONDS) as made:
        made.record(DEFAULT)
        yield made


def values(history: History, asked: Asked, **chosen: str) -> dict[frozenset[tuple[str, str]], float]:
    """Return what *asked* answers at the moment of the last recording, by the labels."""
    answer = history.instant(asked.expr, history.recorded_at, __rate_interval="5m", **chosen)
    shown = {frozenset(row["metric"].items()): float(row["value"][1]) for row in answer}
    assert len(shown) == len(answer)
    return shown


def on_demand(asked: Asked) -> bool:
    """Tell whether *asked* is of a family that is not exported unless somebody asks for it."""
    return any(metric.name in asked.expr for metric in CATALOG if metric.optional)


@pytest.mark.parametrize("asked", [*RAW.values(), *(KEPT[name] for name in DIFFERENT)], ids=lambda asked: asked.name)
def test_a_fleet_is_no_wall_of_lines(history: History, asked: Asked) -> None:
    """Protects the reader of many processes: a panel sums them up, or names the worst, chosen once for its time."""
    answer = history.shown(asked, step=30, detail="10.1.0.1:8000")
    ranked = [int(number) for number in re.findall(r"\b(?:topk|bottomk)\((\d+),", asked.expr)]
    assert len(answer) <= min(ranked, default=MOST)
    # Ranked anew at each step, lines come and go.
    assert asked.instant or not ranked or "@ end()" in asked.expr
    assert answer or on_demand(asked)


@pytest.mark.parametrize("chosen", [{}, {"cluster": "eu"}], ids=["all", "one cluster"])
@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_recorded_means_the_same(history: History, name: str, chosen: dict[str, str]) -> None:
    """Protects large fleets from a second truth: both dashboards show the same labels and numbers.

    How much something rose in the time shown is added up from rates, which know the edges of that time less exactly.
    """
    wanted, shown = (values(history, asked[name], **chosen) for asked in (RAW, KEPT))
    assert wanted
    assert pytest.approx(wanted, rel=NEARLY if "$__range" in KEPT[name].expr else 1e-9) == shown


def test_a_young_job_has_not_lost_connections_all_the_time(history: History) -> None:
    """Protects a new job from a mean that is taken for that of the whole time shown."""
    raw, kept = (values(history, asked["Losses users met A"], job="young") for asked in (RAW, KEPT))
    # The rates of the first minutes are low.
    assert 0.5 * raw[frozenset()] < kept[frozenset()] < 1.05 * raw[frozenset()]


def test_all_that_is_recorded_is_read() -> None:
    """Protects Prometheus from rules for nobody, and the panels and alerts from a record that nobody makes."""
    groups = [group for make in (alerting, serving, recorded) for group in make(DEFAULT)]
    rules = [rule for group in groups for rule in group.rules]
    made = [rule.title for rule in rules if isinstance(rule, Record)]
    asking = [*(asked.expr for asked in KEPT.values()), *(rule.expr for rule in rules)]
    assert sorted(set(made)) == sorted(made)
    assert set(made) == {name for expr in asking for name in record.findall(expr)}


def test_recorded_panels_add_up_no_raw_counters() -> None:
    """Protects large fleets from the queries that grow with them: all counters and buckets are read as recorded.

    Those that it takes an argument to have are not, in a row that asks nothing until it is opened.
    """
    raw = [asked for asked in KEPT.values() if re.search(r"\b(rate|increase)\(", asked.expr)]
    assert [] == [asked.name for asked in raw if not on_demand(asked)]
