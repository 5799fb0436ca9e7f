"""Subclasses that a watched pool is given, and taken off again.

A pool whose class is replaced survives ``Engine.dispose()``, which rebuilds it from its class; a patched instance does
not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.pool import Pool

# Where a class of ours keeps the list that says whether it is to stop.
_STOPPED = "poolwatch_stopped"


def extend(
    pool: Pool, methods: Mapping[str, Callable[[type[Pool]], Callable[..., object]]], stopped: list[bool]
) -> None:
    """Give *pool* a subclass of its class with methods of its own.

    Args:
        pool: Which.
        methods: By name, a function that takes the class that is extended and returns the new method.
        stopped: Not empty once :func:`restore` may take the class off.

    Raises:
        TypeError: Python does not allow it, or it would have no effect.
    """
    base = type(pool)
    for name in methods:
        if name in vars(pool):
            # A wrapper on the instance hides the method of any class, and calls the one it found.
            msg = f"{name} was replaced on the instance"
            raise TypeError(msg)
        if not hasattr(base, name):
            msg = f"it has no {name}"
            raise TypeError(msg)
    made = {name: make(base) for name, make in methods.items()}
    extended = type(base.__name__, (base,), {**made, _STOPPED: stopped})
    # Loggers are named after the class.
    extended.__module__, extended.__qualname__ = base.__module__, base.__qualname__
    pool.__class__ = extended


def restore(pool: Pool) -> None:
    """Take the classes off *pool* that have stopped, down to one of somebody else's or one still in use."""
    while vars(type(pool)).get(_STOPPED):
        pool.__class__ = type(pool).__base__  # type: ignore[assignment]
