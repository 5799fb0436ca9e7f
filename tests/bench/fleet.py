"""What the dashboard's queries cost, and how much they answer, where a fleet of 1,000 processes is shown for an hour.

Each has one pool, 30 routes and the default settings; meanwhile a roll-out replaces every process of one of the two
jobs. Every query is asked twice, as Grafana would, and the second time counts. A panel's seconds are those of its
queries, one after the other. Exits 1 where an answer is more than anyone can read. A thousand processes take 3 GB of
disk and 5 GB of memory, for a minute or two.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "dashboards")]

from fleets import INTERVAL, Fleet, Job, Pool  # noqa: E402
from generator.dashboard import build  # noqa: E402
from generator.options import DEFAULT, Options  # noqa: E402
from generator.rules import alerting, recorded, serving  # noqa: E402
from histories import History, queries  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from histories import Asked

MOST = 30
SHOWN = 3600
STEP = SHOWN // 120


def seconds(act: Callable[[], object]) -> float:
    """Return how long *act* takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def ask(history: History, asked: Asked) -> tuple[float, int]:
    """Ask twice; return the seconds that the second time took, and the number of series in the answer."""
    number = len(history.shown(asked, step=STEP))
    return seconds(lambda: history.shown(asked, step=STEP)), number


def measure(history: History) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return each panel's seconds, raw and recorded, and the most series that a query of it answers with."""
    times: dict[str, list[float]] = {}
    series: dict[str, int] = {}
    for place, options in enumerate((DEFAULT, Options(recorded=True))):
        for asked in queries(build(options)):
            panel = asked.name.rsplit(maxsplit=1)[0]
            spent, number = ask(history, asked)
            times.setdefault(panel, [0.0, 0.0])[place] += spent
            series[panel] = max(series.get(panel, 0), number)
    return times, series


def evaluate(history: History) -> dict[str, float]:
    """Return how long each rule takes when it is evaluated once."""
    groups = [group for make in (alerting, serving, recorded) for group in make(DEFAULT)]
    rules = [rule for group in groups for rule in group.rules]
    return {rule.title: seconds(lambda expr=rule.expr: history.instant(expr, history.end)) for rule in rules}  # type: ignore[misc]


def say(line: str) -> None:
    """Print *line*."""
    print(line, flush=True)  # noqa: T201


def main() -> int:
    """Make the fleet, ask everything, print what it took; return the exit status."""
    parser = argparse.ArgumentParser(description="What the dashboard's queries cost for a fleet.")
    parser.add_argument("--instances", type=int, default=1000, help="processes (1000)")
    half = parser.parse_args().instances // 2
    jobs = (
        Job({"cluster": "eu", "namespace": "shop", "job": "api"}, half, replaced=half),
        Job({"cluster": "eu", "namespace": "shop", "job": "worker"}, half, (Pool(recycle=1800),)),
    )
    # One block of two hours holds all of it.
    end = int(time.time()) // 7200 * 7200 - INTERVAL
    fleet = Fleet(jobs, end=end, scrapes=SHOWN // INTERVAL + 10, unsteady=0.3)
    say(f"{fleet.series(Pool())} series of each process, {len(fleet.processes) * fleet.series(Pool())} in all,")
    say(f"{fleet.samples() / 1e6:.1f} million samples, one every {INTERVAL} s")
    began = time.perf_counter()
    with History(fleet, seconds=SHOWN) as history:
        say(f"written, made into blocks and loaded in {time.perf_counter() - began:.0f} s")
        say(f"rules evaluated for an hour in {seconds(lambda: history.record(DEFAULT)):.1f} s")
        times, series = measure(history)
        rules = evaluate(history)
    say(f"\n{'panel':<48}{'seconds raw':>12}{'recorded':>10}{'series':>8}")
    for panel, (raw, kept) in times.items():
        say(f"{panel:<48}{raw:12.2f}{kept:10.2f}{series[panel]:8}{'  too many' if series[panel] > MOST else ''}")
    for place, kind in enumerate(("raw", "recorded")):
        slowest = max(times, key=lambda panel: times[panel][place])
        whole = sum(each[place] for each in times.values())
        say(f"slowest {kind}: {slowest}, {times[slowest][place]:.2f} s; all panels: {whole:.1f} s")
    slowest = max(rules, key=rules.__getitem__)
    say(f"all rules, evaluated once: {sum(rules.values()):.1f} s; slowest: {slowest}, {rules[slowest]:.2f} s")
    say(f"largest answer: {max(series.values())} series, at most {MOST} are allowed")
    return int(max(series.values()) > MOST)


if __name__ == "__main__":
    sys.exit(main())
