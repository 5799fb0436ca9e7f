"""Connections that are still out when the request that took them is over: counted, and told.

Where a client has left, the connection may come back in a task of its own just after the request: SQLAlchemy closes
sessions that way, asyncio generators. So a request is judged a moment later, by a timer, else by whoever reads then.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from poolwatch.requests import late
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from poolwatch.ledger import Ending, Ledger
    from poolwatch.requests import Account

logger = logging.getLogger("poolwatch")

# Seconds between the end of a request and its judgement.
MOMENT = 0.25
# Seconds between two lines about one route and pool; the first one after them says how many there would have been.
BETWEEN = 60.0
_MOST_LINES = 1000
_lines: dict[tuple[str, tuple[str, str]], tuple[float, int]] = {}


def close(account: Account) -> None:
    """End the request of *account*; never raises."""
    ledgers = set(account.taken.values())
    try:
        # A reader who meets the same error counts it.
        with suppress(Exception):
            account.resolve()
        if late:
            _tell_late()
        left = [
            (ledger, (account, slot, held, ledger.clock()))
            for slot, ledger in list(account.taken.items())
            # Not so while another thread gives it back.
            if (held := slot.held) is not None
        ]
        for ledger, ending in left:
            ledger.endings.append(ending)
        if left:
            # Without a loop of asyncio's, a reader does it.
            with suppress(RuntimeError):
                asyncio.get_running_loop().call_later(MOMENT, _judge_all, left)
    except Exception as error:  # noqa: BLE001
        for ledger in ledgers:
            ledger.trouble(describe("unreturned", error))


def settle(ledger: Ledger) -> None:
    """Judge who was not yet; say which connections have come back that were told missing. Never raises."""
    try:
        for ending in ledger.endings[:]:
            if ledger.clock() - ending[-1] >= MOMENT:
                _judge(ledger, ending)
        _tell_late()
    except Exception as error:  # noqa: BLE001
        ledger.trouble(describe("unreturned", error))


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
    ledger.count("unreturned_total")
    if account.missing is None:
        account.missing = {}
    account.missing[slot] = _tell(ledger, account, ledger.clock() - held)


def _tell(ledger: Ledger, account: Account, seconds: float) -> bool:
    """Log that a connection is missing, and return whether that was not too soon after the last such line."""
    owner, now = account.resolve(), ledger.clock()
    key = ledger.name, owner
    last, skipped = _lines.get(key, (None, 0))
    if last is not None and now - last < BETWEEN:
        _lines[key] = last, skipped + 1
        return False
    if len(_lines) >= _MOST_LINES:
        _lines.clear()
    _lines[key] = now, 0
    logger.warning(
        "poolwatch: %s %s is over and a connection of pool %r is still out that it took %.1f s ago; give connections"
        " back in the request that takes them%s",
        *owner,
        ledger.name,
        seconds,
        f" ({skipped} more since the last such line)" if skipped else "",
    )
    return True


def _tell_late() -> None:
    while late:
        account, ledger, seconds = late.popleft()
        logger.warning(
            "poolwatch: %s %s no longer holds the connection of pool %r that it had left out; it was out for %.1f s",
            *account.resolve(),
            ledger.name,
            seconds,
        )
