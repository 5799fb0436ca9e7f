"""Where in the application's code a connection was checked out: functions, files and lines, and no more than that.

A line of source could be a statement, a value a password.
"""

from __future__ import annotations

from inspect import currentframe
from typing import TYPE_CHECKING

from greenlet import getcurrent

if TYPE_CHECKING:
    from types import CodeType

    # Innermost first.
    Trace = tuple[tuple[CodeType, int], ...]

# Frames that are kept.
_MOST = 6
# Packages that stand between the application and its pool, or its server, in every stack.
_PASSED = frozenset(
    (*("poolwatch", "sqlalchemy", "contextlib", "asyncio", "concurrent", "anyio", "starlette", "fastapi"),)
)
# What lies beyond these is a server's.
_ENDS = frozenset(
    (
        *("poolwatch.middleware", "asyncio.events", "asyncio.base_events", "asyncio.runners", "uvloop"),
        *("concurrent.futures.thread", "threading"),
    )
)


def here() -> Trace:
    """Return the application's innermost callers, up to our middleware; empty if there are none."""
    found: list[tuple[CodeType, int]] = []
    greenlet, frame = getcurrent(), currentframe()
    while len(found) < _MOST:
        while frame is None:
            # SQLAlchemy runs the pool in a greenlet, for which the one that awaits it stands still.
            awaiting = greenlet.parent
            if awaiting is None:
                return tuple(found)
            greenlet, frame = awaiting, awaiting.gr_frame
        module = frame.f_globals.get("__name__")
        # Code that was made by hand may have any object there.
        name = module if isinstance(module, str) else ""
        if name in _ENDS:
            break
        if name.partition(".")[0] not in _PASSED:
            found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def told(trace: Trace) -> str:
    """Return *trace* on one line that can be written in any encoding of Unicode."""
    text = " < ".join(f"{code.co_qualname} ({code.co_filename}:{line})" for code, line in trace)
    # A template's name may have been chosen by a user.
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
