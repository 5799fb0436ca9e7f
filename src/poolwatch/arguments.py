"""Checks of what operators pass in; every message names the argument, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from poolwatch.errors import ArgumentError, ArgumentTypeError

_CENTURY = 100 * 365.25 * 86400

AnyEngine = Engine | AsyncEngine


def sync_engine(engine: object) -> Engine:
    """Return the sync engine behind *engine*, which may be one; raises ArgumentTypeError for anything else."""
    if isinstance(engine, AsyncEngine):
        return engine.sync_engine
    if isinstance(engine, Engine):
        return engine
    msg = (
        f"engine must be an Engine or AsyncEngine, got {type(engine).__name__}; pass what create_engine() or"
        " create_async_engine() returned"
    )
    raise ArgumentTypeError(msg)


def engine_list(engine: AnyEngine | None, engines: object) -> list[tuple[str | None, AnyEngine]]:
    """Return the names and engines of the middleware's *engine* and *engines*; a name is ``None`` if none was given."""
    pairs: list[tuple[Any, Any]] = [] if engine is None else [(None, engine)]
    if isinstance(engines, Mapping):
        pairs += engines.items()
        for name in engines:
            options(name=name)
    elif isinstance(engines, Iterable) and not isinstance(engines, (str, bytes)):
        pairs += [(None, each) for each in engines]
    elif engines is not None:
        msg = f"engines must be several engines, or a mapping of names to engines, got {type(engines).__name__}"
        raise ArgumentTypeError(msg)
    for _, each in pairs:
        sync_engine(each)
    return pairs


def options(**given: Any) -> dict[str, Any]:
    """Return the options of ``watch()`` that are not ``None``, checked."""
    kinds: dict[str, tuple[type, ...]] = {
        "name": (str,),
        "inactivity_limit": (int, float),
        "server_limits": (bool,),
        "guard": (bool,),
        "per_connection": (bool,),
        "registry": (CollectorRegistry,),
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    for key, value in chosen.items():
        if not isinstance(value, kinds[key]) or (isinstance(value, bool) and bool not in kinds[key]):
            wanted = " or ".join(kind.__name__ for kind in kinds[key])
            msg = f"{key} must be {wanted}, got {type(value).__name__}; leave it out for the default"
            raise ArgumentTypeError(msg)
    if chosen.get("name") == "":
        msg = "name must not be empty: it tells pools apart in every series; leave it out for the database's name"
        raise ArgumentError(msg)
    limit = chosen.get("inactivity_limit", 1.0)
    # An integer of any length is below inf; no longer wait than this is ever meant.
    if not 0 < limit < _CENTURY:
        shown = limit if isinstance(limit, float) or abs(limit) < _CENTURY else "a larger one"
        msg = (
            f"inactivity_limit must be a positive number of seconds, below a century, got {shown}; leave it out if none"
            " is known"
        )
        raise ArgumentError(msg)
    return chosen


def path(metrics_path: object) -> str | None:
    """Return the middleware's *metrics_path* without a slash at its end, or ``None``."""
    if metrics_path is None:
        return None
    if not isinstance(metrics_path, str):
        msg = f"metrics_path must be text such as '/metrics', or None, got {type(metrics_path).__name__}"
        raise ArgumentTypeError(msg)
    stripped = metrics_path.rstrip("/")
    if not stripped.startswith("/") or "?" in stripped or "#" in stripped:
        msg = f"metrics_path must begin with a slash and name a path, got {metrics_path!r}; try '/metrics', or None"
        raise ArgumentError(msg)
    return stripped


def registry(value: object) -> CollectorRegistry:
    """Return *value* if it is a registry."""
    if not isinstance(value, CollectorRegistry):
        msg = f"registry must be a CollectorRegistry, got {type(value).__name__}; leave it out for REGISTRY"
        raise ArgumentTypeError(msg)
    return value


def authorize(value: object) -> None:
    """Raise ArgumentTypeError unless *value* is ``None`` or can be called."""
    if value is not None and not callable(value):
        msg = f"authorize must be a function of the scope, got {type(value).__name__}; leave it out for none"
        raise ArgumentTypeError(msg)


def flag(name: str, value: object) -> bool:
    """Return *value*, the argument *name*, if it is true or false."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, got {type(value).__name__}; leave it out for False"
        raise ArgumentTypeError(msg)
    return value


def max_routes(value: object) -> int:
    """Return *value* if it is a number of routes."""
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"max_routes must be a whole number, got {type(value).__name__}; leave it out for 100"
        raise ArgumentTypeError(msg)
    if value < 0:
        msg = f"max_routes must not be negative, got {value}; 0 tells no routes apart, leave it out for 100"
        raise ArgumentError(msg)
    return value
