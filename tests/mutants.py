"""The rules, each with one of its limits moved, and the runs of their tests that ought to notice it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from generate import HERE
from generator import rules
from generator.options import DEFAULT
from generator.rules.model import Alert, Group, Rule, groups_text
from panels_support import promtool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES: dict[str, tuple[Group, ...]] = {"alerts.yml": rules.alerting(DEFAULT), "server.yml": rules.serving(DEFAULT)}
RULES: tuple[Rule, ...] = tuple(rule for groups in FILES.values() for group in groups for rule in group.rules)
TESTS: dict[Path, str] = {path: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("tests/*.tests.yml"))}

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
duration = re.compile(r"(\d+)([smhd])\b")
window = re.compile(r"\[.*?\]")
threshold = re.compile(r"(>=?) (\d+(?:\.\d+)?)\b")
share = re.compile(r"(?<=histogram_quantile\()0\.\d+")
matcher = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def names(text: str, rule: Rule) -> bool:
    """Tell whether *rule* is named in *text*."""
    return re.search(rf"(?<![\w:]){rule.title}(?![\w:])", text) is not None


def closed(some: set[int], *, upward: bool) -> set[int]:
    """Return the places in RULES of *some* and of all that they read or, *upward*, of all that read them."""
    while True:
        pairs = ((RULES[a], RULES[b], b) for a in some for b in range(len(RULES)))
        more = {place for one, other, place in pairs if names(*((other.expr, one) if upward else (one.expr, other)))}
        if more <= some:
            return some
        some = some | more


def concerned(rule: Rule) -> list[Path]:
    """Return the files of tests that *rule* can fail; first those that name it, and few others, which saves time."""
    readers = [RULES[place] for place in closed({RULES.index(rule)}, upward=True)]
    paths = [path for path, text in TESTS.items() if any(names(text, each) for each in readers)]
    return sorted(paths, key=lambda path: (not names(TESTS[path], rule), len(needed(path))))


@cache
def needed(path: Path) -> tuple[Rule, ...]:
    """Return the rules that the tests in *path* name, and those that these read."""
    named = {place for place, rule in enumerate(RULES) if names(TESTS[path], rule)}
    return tuple(RULES[place] for place in closed(named, upward=False))


def run(directory: Path, path: Path, rule: Rule | None = None, altered: Rule | None = None) -> tuple[int, str]:
    """Run the tests in *path* with *altered* in place of *rule*, and return their status and what they said.

    Of the rules only those are there that the file names, and what these read: the rest would take time.
    """
    kept = needed(path)
    for name, groups in FILES.items():
        fewer = [
            replace(group, rules=tuple(altered if each is rule and altered else each for each in own))
            for group in groups
            if (own := [each for each in group.rules if each in kept])
        ]
        (directory / name).write_text(groups_text(fewer, DEFAULT), encoding="utf-8")
    (directory / "tests").mkdir(exist_ok=True)
    answer = promtool("test", "rules", shutil.copy(path, directory / "tests"))
    return answer.returncode, answer.stdout + answer.stderr


def survivors(directory: Path, rule: Rule) -> list[str]:
    """Return the names of the mutants of *rule* that no test fails."""
    paths, alive = concerned(rule), []
    for name, altered in mutants(rule):
        for path in paths:
            status, said = run(directory, path, rule, altered)
            if status:
                assert "FAILED" in said, said
                assert "parse error" not in said, said
                # What noticed one of them is likely to notice the next.
                paths = sorted(paths, key=lambda each: each != path)
                break
        else:
            alive.append(name)
    return alive


def other_durations(text: str) -> Iterator[str]:
    """Yield *text* with one of its durations halved or doubled."""
    for found in duration.finditer(text):
        seconds = int(found[1]) * SECONDS[found[2]]
        for other in (seconds // 2, seconds * 2):
            yield f"{text[: found.start()]}{other}s{text[found.end() :]}"


def other_matchers(text: str) -> Iterator[str]:
    """Yield the matcher *text* with each of its alternatives left out, and one that is content with everything."""
    label, sign, values = matcher.findall(text)[0]
    parts = values.split("|")
    if len(parts) > 1:
        for part in parts:
            yield f'{label}{sign}"{"|".join(each for each in parts if each != part)}"'
    yield f'{label}=~".*"'


def other_thresholds(sign: str, number: str) -> Iterator[str]:
    """Yield the comparison with *number* moved up and down: whole ones by one, others by a quarter."""
    if "." in number:
        yield f"{sign} {1.25 * float(number):.6g}"
        yield f"{sign} {0.75 * float(number):.6g}"
    else:
        yield f"{sign} {int(number) + 1}"
        yield f">= {int(number) - (sign == '>=')}"


def other_expressions(expr: str) -> Iterator[tuple[str, str]]:
    """Yield what is changed into what, and *expr* with that change; windows and matchers change wherever they stand."""
    for pattern, others in ((window, other_durations), (matcher, other_matchers)):
        for text in sorted({found[0] for found in pattern.finditer(expr)}):
            for other in others(text):
                yield f"{text} to {other}", expr.replace(text, other)
    for found in share.finditer(expr):
        # Of the callers left out, half as many and twice as many.
        for other in (f"{(1 + float(found[0])) / 2:.6g}", f"{2 * float(found[0]) - 1:.6g}"):
            yield f"{found[0]} to {other}", f"{expr[: found.start()]}{other}{expr[found.end() :]}"
    for place, found in enumerate(threshold.finditer(expr), 1):
        for other in other_thresholds(found[1], found[2]):
            yield f"{found[0]} ({place}) to {other}", f"{expr[: found.start()]}{other}{expr[found.end() :]}"


def mutants(rule: Rule) -> Iterator[tuple[str, Rule]]:
    """Yield what is changed into what, and *rule* with that change: each of its limits moved up and down."""
    for what, expr in other_expressions(rule.expr):
        yield what, replace(rule, expr=expr)
    if isinstance(rule, Alert):
        for other in other_durations(rule.lasting):
            yield f"for {rule.lasting} to {other}", replace(rule, lasting=other)


def title(rule: Rule) -> str:
    """Return what tells *rule* from all others."""
    return " ".join([rule.title, *(rule.labels.values() if isinstance(rule, Alert) else ())])
