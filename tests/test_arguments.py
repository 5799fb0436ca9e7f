"""Bad arguments raise at once, by name and with a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from poolwatch import ArgumentError, ArgumentTypeError, PoolwatchError, PoolWatchMiddleware, watch

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


async def nobody(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Stand for an application that is never called."""


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"engine": "mysql://"}, ArgumentTypeError, ["engine", "str", "create_engine"]),
        ({"engine": AsyncSession}, ArgumentTypeError, ["engine", "create_async_engine"]),
        ({"name": ""}, ArgumentError, ["name", "empty", "leave it out"]),
        ({"name": 5}, ArgumentTypeError, ["name", "int", "str"]),
        ({"inactivity_limit": 0}, ArgumentError, ["inactivity_limit", "0", "positive"]),
        ({"inactivity_limit": float("inf")}, ArgumentError, ["inactivity_limit", "inf"]),
        ({"inactivity_limit": float("nan")}, ArgumentError, ["inactivity_limit", "nan"]),
        ({"inactivity_limit": 10**400}, ArgumentError, ["inactivity_limit"]),
        ({"inactivity_limit": True}, ArgumentTypeError, ["inactivity_limit", "bool"]),
        ({"inactivity_limit": "350"}, ArgumentTypeError, ["inactivity_limit", "str"]),
        ({"server_limits": 1}, ArgumentTypeError, ["server_limits", "int", "bool"]),
        ({"per_connection": "yes"}, ArgumentTypeError, ["per_connection", "str"]),
        ({"registry": {}}, ArgumentTypeError, ["registry", "dict", "CollectorRegistry"]),
    ],
)
def test_bad_arguments_of_watch(
    engine: AsyncEngine, arguments: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    """A bad argument raises at once, naming the argument, the value and the remedy."""
    with pytest.raises(kind) as caught:
        watch(**{"engine": engine, "registry": CollectorRegistry(), **arguments})
    assert isinstance(caught.value, PoolwatchError)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"engine": "mysql://"}, ArgumentTypeError, "engine"),
        ({"engines": "mysql://"}, ArgumentTypeError, "engines"),
        ({"engines": [None]}, ArgumentTypeError, "engine"),
        ({"engines": 5}, ArgumentTypeError, "engines"),
        ({"metrics_path": "metrics"}, ArgumentError, "metrics_path"),
        ({"metrics_path": "/"}, ArgumentError, "metrics_path"),
        ({"metrics_path": "/metrics?x"}, ArgumentError, "metrics_path"),
        ({"metrics_path": 5}, ArgumentTypeError, "metrics_path"),
        ({"max_routes": -1}, ArgumentError, "max_routes"),
        ({"route_details": 1}, ArgumentTypeError, "route_details"),
        ({"trace_checkouts": "yes"}, ArgumentTypeError, "trace_checkouts"),
        ({"max_routes": 1.5}, ArgumentTypeError, "max_routes"),
        ({"max_routes": True}, ArgumentTypeError, "max_routes"),
        ({"registry": None}, ArgumentTypeError, "registry"),
        ({"authorize": "token"}, ArgumentTypeError, "authorize"),
    ],
)
def test_bad_arguments_of_the_middleware(options: dict[str, Any], kind: type[Exception], word: str) -> None:
    """The constructor refuses bad arguments by name."""
    with pytest.raises(kind, match=word):
        PoolWatchMiddleware(nobody, **options)


def test_a_name_that_is_empty(engine: AsyncEngine) -> None:
    """A name in a mapping obeys the same rules as watch()'s."""
    with pytest.raises(ArgumentError, match="name"):
        PoolWatchMiddleware(nobody, engines={"": engine})
