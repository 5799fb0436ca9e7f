"""A Prometheus on series that were made beforehand, asked the way Grafana asks for a dashboard's panels."""

from __future__ import annotations

import re
import subprocess
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from fleets import INTERVAL
from generator.promql import SERVER_NAME, SERVER_OPEN
from generator.rules import recorded, serving
from generator.rules.model import Group, Record, groups_text
from panels_support import panels_of
from poolwatch.demo.servers import Prometheus, find

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fleets import Fleet
    from generator.options import Options

# What the choice "All" stands for; labels that only some series have may be missing.
ALWAYS = {"job", "instance", "pool"}
# Not what label_replace() calls the parts that it found.
variable = re.compile(r"\$([a-z_]\w*)")


class Asked(NamedTuple):
    """One query of a dashboard: the panel's title with the query's letter, and what it says."""

    name: str
    expr: str
    instant: bool


def queries(dashboard: Mapping[str, Any]) -> list[Asked]:
    """Return all queries of *dashboard*, of collapsed rows and of marks in graphs too."""
    marks = [mark for mark in dashboard["annotations"]["list"] if "expr" in mark]
    return [
        *(
            Asked(f"{panel['title']} {target['refId']}", target["expr"], target["instant"])
            for panel in panels_of(dashboard)
            for target in panel.get("targets", ())
        ),
        *(Asked(f"{mark['name']} (marks)", mark["expr"], instant=False) for mark in marks),
    ]


def records(options: Options) -> tuple[Record, ...]:
    """Return what the recording rules keep that a dashboard may read."""
    groups = (*recorded(options), *serving(options))
    return tuple(rule for group in groups for rule in group.rules if isinstance(rule, Record))


class History(Prometheus):
    """A Prometheus that scrapes nothing and holds what *fleet* exported.

    Attributes:
        seconds: The time shown, which ends at the last scrape.
    """

    def __init__(self, fleet: Fleet, *, seconds: int) -> None:
        self._fleet = fleet
        self.seconds = seconds
        super().__init__({})
        self._blocks = self.directory / "data"
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=120)

    @property
    def end(self) -> int:
        """The moment of the last scrape."""
        return self._fleet.moments[-1]

    def command(self) -> list[str]:
        """Make blocks of what the fleet exported where they are missing; return the command line. All is kept."""
        if not self._blocks.exists():
            text = self.directory / "fleet.txt"
            with text.open("w", encoding="utf-8") as file:
                file.writelines(self._fleet.text())
            _promtool("openmetrics", text, self._blocks)
            text.unlink()
        return [*super().command(), "--storage.tsdb.retention.time=50y"]

    def __exit__(self, *error: object) -> None:
        self._http.close()
        super().__exit__(*error)

    def record(self, options: Options) -> None:
        """Add what the recording rules would have kept, and start anew: blocks are read at the start.

        All rules are in one group, since each group has moments of its own within the interval.
        """
        first = [rule for rule in records(options) if rule.title == SERVER_NAME]
        others = [rule for rule in records(options) if rule.title != SERVER_NAME]
        window = ("--start", str(self.end - self.seconds), "--end", str(self.end + INTERVAL))
        rules = self.directory / "rules.yml"
        # What another rule reads has to be there before.
        for made in (first, others):
            rules.write_text(groups_text([Group(name="all", rules=tuple(made))], options), encoding="utf-8")
            interval = ("--eval-interval", f"{INTERVAL}s")
            _promtool("rules", *window, *interval, "--url", self.url, "--output-dir", self._blocks, rules)
            self.stop()
            self.start()

    @cached_property
    def recorded_at(self) -> float:
        """The moment at which the rules were evaluated last."""
        (answer,) = self.instant(f"max(timestamp({SERVER_OPEN}))", self.end + INTERVAL)
        return float(answer["value"][1])

    def instant(self, expr: str, moment: float, **chosen: str) -> list[dict[str, Any]]:
        """Return the answer to *expr* at *moment*; *chosen* are the variables that are not at All."""
        return self._ask("query", query=self._filled(expr, INTERVAL, chosen), time=moment)

    def shown(self, asked: Asked, *, step: int, **chosen: str) -> list[dict[str, Any]]:
        """Return the answer that a panel shows: at the end, or in steps until then."""
        if asked.instant:
            return self.instant(asked.expr, self.end, **chosen)
        return self._ask(
            "query_range",
            query=self._filled(asked.expr, step, chosen),
            start=self.end - self.seconds,
            end=self.end,
            step=step,
        )

    def _filled(self, expr: str, step: int, chosen: Mapping[str, str]) -> str:
        values = {
            "__rate_interval": f"{max(4 * INTERVAL, step + INTERVAL)}s",
            "__range": f"{self.seconds}s",
            "__range_s": str(self.seconds),
            **chosen,
        }
        return variable.sub(lambda found: values.get(found[1], ".+" if found[1] in ALWAYS else ".*"), expr)

    def _ask(self, kind: str, **parameters: str | float) -> list[dict[str, Any]]:
        answer = self._http.post(f"/api/v1/{kind}", data=parameters).json()
        if answer["status"] != "success":
            msg = f"{answer['error']} of {parameters['query']}"
            raise ValueError(msg)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


def _promtool(kind: str, *arguments: str | Path) -> None:
    command = [find("promtool", "prometheus"), "tsdb", "create-blocks-from", kind, *map(str, arguments)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        msg = f"{' '.join(command)} failed: {made.stderr[-2000:]}"
        raise RuntimeError(msg)
