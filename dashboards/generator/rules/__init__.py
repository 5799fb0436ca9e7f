"""The rules: what is recorded, and what somebody is told about."""

from generator.options import Options
from generator.rules import budget, capacity, hogs, recording, timeouts
from generator.rules.model import Group, Rule

RARELY = "These read a day of every process's counters, which is too much for each evaluation."


def alerting(options: Options) -> tuple[Group, ...]:
    """Return the alerts, with what they need recorded; evaluated wherever the series are."""
    symptoms: tuple[Rule, ...] = (*budget.records(options), *budget.alerts(options))
    others = (*hogs.alerts(options), *timeouts.alerts(options))
    return (
        Group(name="sqlalchemy_pool.budget", rules=symptoms),
        Group(name="sqlalchemy_pool.alerts", rules=others),
        Group(name="sqlalchemy_pool.losses", rules=timeouts.losses(options), comment=RARELY, interval="5m"),
        Group(name="sqlalchemy_pool.settings", rules=capacity.problems(options)),
    )


def serving(options: Options) -> tuple[Group, ...]:
    """Return the rules on servers, which see nothing unless every process's series are there."""
    rules: tuple[Rule, ...] = (*capacity.records(options), *capacity.alerts(options))
    return (Group(name="sqlalchemy_pool.server", rules=rules, comment=capacity.EVALUATE),)


def recorded(options: Options) -> tuple[Group, ...]:
    """Return what a dashboard generated with ``recorded`` reads."""
    return (
        Group(name="sqlalchemy_pool.rates", rules=recording.rates(options)),
        Group(name="sqlalchemy_pool.state", rules=recording.state(options)),
    )
