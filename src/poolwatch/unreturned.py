"""Connections that a request does not give back: still out when it is over, or found by the garbage collector.

Where a client has left, the connection may come back in a task of its own just after the request: SQLAlchemy closes
sessions that way, asyncio generators. So a request is judged a moment later, by a timer, else by whoever reads then.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from poolwatch.traces import told
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator

    from poolwatch.ledger import Ending, Ledger
    from poolwatch.requests import Account
    from poolwatch.slot import Slot
    from poolwatch.traces import Trace

T = TypeVar("T")

logger = logging.getLogger("poolwatch")

# Seconds between the end of a request and its judgement.
MOMENT = 2.0
# In so many steps, each begun when the last is over: a loop that was busy for long has had no time to give back.
_STEPS = 8
# Seconds between two lines of a kind about one route; the first one after them says how many there would have been.
BETWEEN = 60.0
_MOST_LINES = 1000


def close(account: Account, *, collected: bool = False) -> None:
    """End the request of *account*; never raises.

    *collected*: by the garbage collector, which may have come in the middle of the application's routing, of logging or
    of the event loop's timers: all of that is left to readers.
    """
    try:
        if collected:
            account.slim()
        else:
            account.resolve(account.ledger.trouble)
        left = [
            (ledger, (account, slot, held, ledger.clock()))
            # Not items(): its tuples let the garbage collector in, whose listeners change the dictionary.
            for slot in list(account.taken)
            # Not so while another thread gives it back.
            if (held := slot.held) is not None and (ledger := account.taken.get(slot)) is not None
        ]
        for ledger, ending in left:
            ledger.endings.append(ending)
        if collected:
            return
        if left:
            # Without a loop of asyncio's, a reader does it.
            with suppress(RuntimeError):
                _step(asyncio.get_running_loop(), left, _STEPS)
        _tell_later(account.ledger)
    except Exception as error:  # noqa: BLE001
        account.ledger.trouble(describe("unreturned", error))


def found(ledger: Ledger, slot: Slot, held: float) -> None:
    """Note that the garbage collector found the connection of *slot*, out since *held*: for listeners."""
    account = slot.account
    if account is None:
        return
    for ending in ledger.endings[:]:
        if ending[0] is account and ending[1] is slot:
            # Nobody has given it back in the moment that there was for that.
            with suppress(ValueError):
                ledger.endings.remove(ending)
                ledger.usage.miss(account)
    ledger.leaked.append((account, ledger.clock() - held, slot.trace))


def settle(ledger: Ledger) -> None:
    """Judge who was not yet; say which connections have come back that were told missing. Never raises."""
    try:
        for ending in ledger.endings[:]:
            # Well after the timer, where there is one.
            if ledger.clock() - ending[-1] >= 2 * MOMENT:
                _judge(ledger, ending)
        _tell_later(ledger)
    except Exception as error:  # noqa: BLE001
        ledger.trouble(describe("unreturned", error))


def _step(loop: asyncio.AbstractEventLoop, left: list[tuple[Ledger, Ending]], steps: int) -> None:
    if steps:
        loop.call_later(MOMENT / _STEPS, _step, loop, left, steps - 1)
    else:
        _judge_all(left)


def _judge_all(left: list[tuple[Ledger, Ending]]) -> None:
    for ledger, ending in left:
        try:
            _judge(ledger, ending)
        except Exception as error:  # noqa: BLE001
            ledger.trouble(describe("unreturned", error))


def _judge(ledger: Ledger, ending: Ending) -> None:
    try:
        # Whoever takes it off the list is the one who judges.
        ledger.endings.remove(ending)
    except ValueError:
        return
    account, slot, held, _ = ending
    record = slot.record()
    # The slot is its record's own until the watch is closed, and notes the end of the hold until then.
    if slot.held != held or record is None or (record.record_info or {}).get(ledger.key) is not slot:
        return
    ledger.usage.miss(account)
    skipped = _due(ledger, account, "unreturned")
    if account.missing is None:
        account.missing = {}
    # Before it is told, because it may come back meanwhile.
    account.missing[slot] = skipped is not None
    if skipped is not None:
        _tell(ledger, account.resolve(ledger.trouble), slot.trace, ledger.clock() - held, skipped)


def _due(ledger: Ledger, account: Account, kind: str) -> int | None:
    """Return how many lines about its route were not logged since the last; ``None`` if it is too soon for one."""
    lines, now = ledger.lines, ledger.clock()
    key = kind, account.resolve(ledger.trouble)
    last, skipped = lines.get(key, (None, 0))
    if last is not None and now - last < BETWEEN:
        lines[key] = last, skipped + 1
        return None
    if len(lines) >= _MOST_LINES:
        lines.clear()
    lines[key] = now, 0
    return skipped


def _tell(ledger: Ledger, owner: tuple[str, str], trace: Trace, seconds: float, skipped: int) -> None:
    """Log that a connection is missing."""
    logger.warning(
        "poolwatch: %s %s is over and a connection of pool %r is still out that it took %.1f s ago%s; give connections"
        " back in the request that takes them%s",
        *owner,
        ledger.name,
        seconds,
        *_more(trace, skipped),
    )


def _more(trace: Trace, skipped: int) -> tuple[str, str]:
    return (
        f" in {told(trace)}" if trace else "",
        f" ({skipped} more since the last such line)" if skipped else "",
    )


def _tell_later(ledger: Ledger) -> None:
    for account, seconds in _taken_off(ledger.late):
        logger.warning(
            "poolwatch: %s %s no longer holds the connection of pool %r that it had left out; it was out for %.1f s",
            *account.resolve(ledger.trouble),
            ledger.name,
            seconds,
        )
    for account, seconds, trace in _taken_off(ledger.leaked):
        skipped = _due(ledger, account, "leaked")
        if skipped is not None:
            logger.warning(
                "poolwatch: %s %s lost a connection of pool %r without giving it back, and the garbage collector found"
                " it; it was out for %.1f s, since a checkout%s; close it, or use a with block%s",
                *account.resolve(ledger.trouble),
                ledger.name,
                seconds,
                *_more(trace, skipped),
            )


def _taken_off(news: deque[T]) -> Iterator[T]:
    """Yield what is in *news*, each to one of the threads that ask."""
    while True:
        try:
            yield news.popleft()
        except IndexError:
            return
