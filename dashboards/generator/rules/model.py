"""Prometheus's rules: typed parts in, the plain text that it loads out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from textwrap import fill, indent
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from generator.options import UID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.options import Options

WIDTH = 110


def _choice(label: str) -> str:
    # Nothing where the series have no such label: the dashboard would show what has an empty one.
    return f"{{{{ with $labels.{label} }}}}&var-{label}={{{{ . | urlquery }}}}{{{{ end }}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One recording rule, whose series are called *title*."""

    title: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alerting rule.

    Attributes:
        title: Its name, and in lower case the runbook's anchor.
        comment: Why it is written as it is, for the rules file.
        severity: ``critical`` wakes somebody, ``warning`` is work for the day, ``info`` a hint.
        lasting: For how long it has to be true.
        labels: More of them.
        kept: What it keeps apart: pools, or servers.
    """

    title: str
    comment: str
    expr: str
    severity: str
    summary: str
    description: str
    lasting: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    kept: Literal["pools", "servers"] = "pools"

    def choices(self, options: Options) -> str:
        """Return what chooses on the dashboard what it is about."""
        if self.kept == "servers":
            return "".join(map(_choice, options.server_labels))
        always = "&".join(f"var-{label}={{{{ $labels.{label} | urlquery }}}}" for label in ("job", "pool"))
        return always + "".join(map(_choice, options.labels))


Rule = Record | Alert


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rules that are evaluated one after the other, so that each sees what those above it have just recorded.

    Every *interval*, or else as often as Prometheus evaluates rules.
    """

    name: str
    rules: tuple[Rule, ...]
    comment: str = ""
    interval: str = ""


def _comment(text: str, depth: int) -> list[str]:
    return [indent(fill(text, WIDTH - depth - 2), " " * depth + "# ")] if text else []


def _expr(expr: str) -> list[str]:
    return ["        expr: |-", indent(expr, " " * 10)]


def _rule(rule: Rule, options: Options) -> str:
    if isinstance(rule, Record):
        return "\n".join([f"      - record: {rule.title}", *_expr(rule.expr)])
    # Without a host where none was given: only the reader knows where that Grafana is.
    dashboard = f"{options.grafana}/d/{UID}?{rule.choices(options)}"
    return "\n".join(
        [
            *_comment(rule.comment, 6),
            f"      - alert: {rule.title}",
            *_expr(rule.expr),
            *([f"        for: {rule.lasting}"] if rule.lasting else []),
            "        labels:",
            *(f"          {key}: {value}" for key, value in {"severity": rule.severity, **rule.labels}.items()),
            "        annotations:",
            # A JSON string is a YAML string too, whatever it holds.
            f"          summary: {json.dumps(rule.summary)}",
            "          description: >-",
            indent(fill(rule.description, WIDTH - 12, break_on_hyphens=False), " " * 12),
            f"          dashboard_url: {json.dumps(dashboard)}",
            f"          runbook_url: {json.dumps(f'{options.runbook}#{quote(rule.title.lower())}')}",
        ]
    )


def groups_text(groups: Sequence[Group], options: Options) -> str:
    """Return *groups* as the list that both Prometheus's files and Kubernetes' objects hold."""
    lines = ["groups:"]
    for group in groups:
        lines += [*_comment(group.comment, 2), f"  - name: {group.name}"]
        lines += [f"    interval: {group.interval}"] if group.interval else []
        lines += ["    rules:"]
        lines += [_rule(rule, options) for rule in group.rules]
    return "\n".join(lines) + "\n"
