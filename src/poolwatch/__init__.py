"""See which pooled SQLAlchemy connections the server is about to drop, which are dead, and who waits for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.attachment import Watch
from poolwatch.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConflictError,
    MetricNameError,
    PoolwatchError,
    WatchClosedError,
)
from poolwatch.histogram import HistogramSnapshot
from poolwatch.middleware import PoolWatchMiddleware
from poolwatch.snapshot import PoolSnapshot
from poolwatch.watch import watch

if TYPE_CHECKING:
    __version__: str

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ConflictError",
    "HistogramSnapshot",
    "MetricNameError",
    "PoolSnapshot",
    "PoolWatchMiddleware",
    "PoolwatchError",
    "Watch",
    "WatchClosedError",
    "watch",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("poolwatch")
    msg = f"module 'poolwatch' has no attribute {name!r}"
    raise AttributeError(msg)
