"""What a team may want otherwise: which labels its series carry, and which numbers are worth a word."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from poolwatch.catalog import BY_FIELD, CATALOG

# Never to be changed: alerts and other dashboards link to it, and an import replaces what has it.
UID = "sqlalchemy-pool"

# How many times faster than the objective allows failures may come before somebody is woken.
FASTEST = 14.4
# Labels that the dashboard, the rules or the library use for something else.
RESERVED = {"job", "pool", "le", "datasource", "detail"} | {label.name for metric in CATALOG for label in metric.labels}
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The generator's arguments.

    Attributes:
        labels: Labels around ``job`` by which alerts are kept apart and which the dashboard lets choose; series that
            lack them are fine.
        server_labels: Those of *labels* that also keep apart databases whose ``host:port`` read the same.
        instance: The label that names a process's target: ``instance``, or ``pod`` where that says more.
        recorded: The dashboard reads what the recording rules keep, for fleets whose raw series are too many.
        objective: The share of checkouts that has to end well.
        slow: Seconds from which on one checkout in a hundred is too slow; a bound of the histogram's buckets.
        full: The shares of its limit from which on a pool is drawn orange, and red.
        server_full: The share of the server's ``max_connections`` from which on somebody is woken.
        grafana: Address in front of ``/d/...`` in alerts; empty, they hold the path alone.
        runbook: Address of the runbook; each alert adds its own ``#anchor``.
    """

    labels: tuple[str, ...] = ("cluster", "namespace")
    server_labels: tuple[str, ...] = ("cluster",)
    instance: str = "instance"
    recorded: bool = False
    objective: float = 0.999
    slow: float = 0.5
    full: tuple[float, float] = (0.85, 0.95)
    server_full: float = 0.9
    grafana: str = ""
    runbook: str = "RUNBOOK.md"

    @property
    def by_pool(self) -> str:
        """The labels that name a pool, by which alerts are kept apart.

        "by" and not "without": scrape configurations add pod, container, node and more, which would keep the processes
        of one job apart. A label that nobody sets costs nothing.
        """
        return ", ".join((*self.labels, "job", "pool"))

    @property
    def by_process(self) -> str:
        """The labels of `process`."""
        return ", ".join(self.process)

    @property
    def by_server(self) -> str:
        """The labels that name a server."""
        return ", ".join((*self.server_labels, "server"))

    @property
    def process(self) -> tuple[str, ...]:
        """The labels that name a pool in a process; a pod may have several targets, so theirs is always among them."""
        return tuple(dict.fromkeys((*self.labels, "job", "instance", self.instance, "pool")))

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot work: it would be a rule that is silent for ever."""
        own = (*self.labels, self.instance)
        taken = sorted({each for each in own if own.count(each) > 1 or each in RESERVED})
        if taken:
            msg = f"the label {taken[0]!r} is one of ours or named twice; labels and instance have to be others"
            raise ValueError(msg)
        strangers = set(self.server_labels) - set(self.labels)
        if strangers:
            msg = f"server_labels has {', '.join(sorted(strangers))}, which labels lacks; add it there"
            raise ValueError(msg)
        bounds = BY_FIELD["checkout_duration_seconds"].buckets[:-1]
        if self.slow not in bounds:
            msg = f"slow is {self.slow}, which a histogram cannot tell; take one of {', '.join(map(str, bounds))}"
            raise ValueError(msg)
        if FASTEST * (1 - self.objective) >= 1:
            msg = f"objective is {self.objective}: no share of failures uses that up {FASTEST} times too fast"
            raise ValueError(msg)
        if not self.full[0] < self.full[1]:
            msg = f"full is {self.full}; the share for orange has to be below the one for red"
            raise ValueError(msg)


DEFAULT = Options()


def _labels(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    for name in names:
        if not _LABEL.fullmatch(name):
            msg = f"{name!r} is no label's name"
            raise argparse.ArgumentTypeError(msg)
    return names


def _label(text: str) -> str:
    (name,) = _labels(text) or ("",)
    return name


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        msg = f"{text} is no share between 0 and 1"
        raise argparse.ArgumentTypeError(msg)
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give *parser* an argument for each attribute of :class:`Options`."""
    add = parser.add_argument
    joined = ",".join
    add("--labels", type=_labels, help=f"labels around job, comma-separated ({joined(DEFAULT.labels)})")
    add("--server-labels", type=_labels, help=f"those that keep databases apart ({joined(DEFAULT.server_labels)})")
    add("--instance", type=_label, metavar="LABEL", help="the label that names a process: instance or pod (instance)")
    add("--recorded", action="store_true", default=None, help="a dashboard that reads the recording rules")
    add("--objective", type=_share, help=f"share of checkouts that has to end well ({DEFAULT.objective})")
    add("--slow", type=float, metavar="SECONDS", help=f"too long for 1 checkout in 100 ({DEFAULT.slow})")
    add("--full", type=_share, nargs=2, metavar="SHARE", help="a pool's orange and red (0.85 0.95)")
    add("--server-full", type=_share, metavar="SHARE", help=f"of max_connections ({DEFAULT.server_full})")
    add("--grafana", metavar="URL", help="Grafana's address, for the links in alerts")
    add("--runbook", metavar="URL", help="the runbook's address, for the links in alerts")


def chosen(arguments: argparse.Namespace) -> Options:
    """Return the options that the command line names, and the default of every other.

    Raises:
        ValueError: They do not go together.
    """
    given = {name: value for name in Options.__dataclass_fields__ if (value := getattr(arguments, name)) is not None}
    if "labels" in given and "server_labels" not in given and not set(DEFAULT.server_labels) <= {*given["labels"]}:
        msg = "labels leaves out what keeps databases apart by default; say with server_labels what does instead"
        raise ValueError(msg)
    if "grafana" in given:
        given["grafana"] = given["grafana"].rstrip("/")
    if "full" in given:
        given["full"] = tuple(given["full"])
    return Options(**given)
