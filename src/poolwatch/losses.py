"""Connections found lost: who met it, and why it was lost, by what happened to the transport and not by error codes.

Whether a server that closes a connection in order was told to close that one (``KILL``) or goes down itself shows only
afterwards: in its other connections, in the next attempt to connect. So a loss of that kind waits until somebody reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from poolwatch import sockets
from poolwatch.drivers import driver_of
from poolwatch.server import limit_of, margin
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Dialect

    from poolwatch.ledger import Ledger
    from poolwatch.slot import Slot

# What the server says when it closes a connection, where the driver lets it through.
# https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html, https://mariadb.com/kb/en/e1927/
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_SAID: dict[object, str] = {
    4031: "inactivity",
    1927: "killed",
    3169: "killed",
    1053: "shutdown",
    "57P05": "inactivity",
    "25P03": "inactivity",
    "25P04": "inactivity",
    "57P02": "shutdown",
    "57P03": "shutdown",
}
# pg_terminate_backend() and a server that stops say the same.
_TERMINATED = "57P01"
# MySQL's drivers, when the stream ended where an answer should have come.
_NO_ANSWER = 2013
# Seconds after which a statement has been at work: an answer to one that met a closed connection comes at once.
_AT_WORK = 1.0
_PENDING_AT_MOST = 500

Answer = TypeVar("Answer")

# Marks an error that a caller got instead of a connection and that is counted here, not as a checkout that failed.
COUNTED = "poolwatch_counted"


class Loss(NamedTuple):
    """One connection found lost.

    Attributes:
        phase: Who met it: a value of ``disconnects_total``'s label.
        cause: Why; ``None`` if what follows tells.
        otherwise: The cause if it is not found that the server went down.
        at: When it was found, by the ledger's clock.
        silence: Seconds that the server had not heard from it when it was found; ``None`` if unknown.
        explained: The silence before it had no part in it: the server has told the cause, or it was at work.
        mark: A number that is lower in sessions opened after a restart of the server; ``None`` if unknown.
    """

    phase: str
    cause: str | None
    otherwise: str
    at: float
    silence: float | None
    explained: bool
    mark: float | None


class Losses:
    """Books one pool's lost connections in its ledger.

    Args:
        ledger: Where.
        dialect: The engine's.
    """

    def __init__(self, ledger: Ledger, dialect: Dialect) -> None:
        self._ledger = ledger
        self._driver = driver_of(dialect)
        self._pending: list[Loss] = []

    def is_lost(self, connection: Any, *, suspected: bool) -> bool:
        """Tell whether *connection*'s transport has ended; if its driver cannot tell, believe what is *suspected*."""
        lost = self._ask(self._driver.is_lost, connection)
        return suspected if lost is None else lost

    def _ask(self, question: Callable[[Any], Answer | None], connection: Any) -> Answer | None:
        try:
            return question(connection)
        except Exception as error:  # noqa: BLE001
            # Another thread may have closed what we look at, or the driver has changed.
            self._ledger.trouble(describe(question.__name__, error))
            return None

    def found(
        self, slot: Slot, phase: str, connection: Any, *, silence: float | None, error: BaseException | None = None
    ) -> None:
        """Book the loss of *slot*'s *connection*, once.

        Args:
            slot: Where it was.
            phase: Who met it: a value of ``disconnects_total``'s label.
            connection: The driver's.
            silence: Seconds that the server had not heard from it; ``None`` if unknown.
            error: What the driver raised, if it did.
        """
        if slot.lost:
            return
        slot.lost = True
        if slot.ended is not None and slot.active is not None and silence is not None:
            # It may have lain dead for long since.
            silence = min(silence, max(0.0, slot.ended - slot.active))
        # What was sent when it was found may have begun or ended a transaction.
        began = slot.began_before if phase in {"in_use", "return"} else slot.began
        cause, otherwise, explained = self._cause(slot, connection, silence, error, began=began)
        loss = Loss(phase, cause, otherwise, self._ledger.clock(), silence, explained, slot.mark)
        if cause is None and len(self._pending) < _PENDING_AT_MOST:
            self._pending.append(loss)
        else:
            self._book(loss, cause or otherwise)

    def settle(self) -> None:
        """Decide what was left open, by what is known now; for a reader."""
        while self._pending:
            loss = self._pending.pop(0)
            self._book(loss, "shutdown" if self._went_down(loss) else loss.otherwise)

    def restart(self) -> None:
        """Forget everything, in a forked child."""
        self._pending.clear()

    def _cause(
        self, slot: Slot, connection: Any, silence: float | None, error: BaseException | None, *, began: bool
    ) -> tuple[str | None, str, bool]:
        # Without an error nothing was sent, and what the server said last is still to be read.
        said = self._ask(self._driver.last_word if error is None else self._driver.goodbye, connection)
        words = [*_words(error), slot.goodbye, said]
        for each in words:
            if each in _SAID:
                return _SAID[each], "unknown", True
        told = self._ask(self._driver.in_transaction, connection)
        limit = limit_of({**slot.limits, **self._ledger.configured}, in_transaction=began if told is None else told)
        if silence is not None and limit is not None and silence >= limit - margin(limit):
            return "inactivity", "unknown", False
        if _TERMINATED in words:
            return None, "killed", True
        was_reset = self._ask(self._driver.was_reset, connection)
        if was_reset is None:
            was_reset = self._was_reset(connection) if error is None else _is_reset(error)
        if was_reset is None and _NO_ANSWER in words:
            was_reset = False
        if was_reset:
            return "network", "unknown", False
        # One that was closed at work had survived the silence before it.
        worked = was_reset is False and slot.sent is not None and self._ledger.clock() - slot.sent > _AT_WORK
        # Where the server always has a last word and had none, something in between has broken it off, or a crash.
        otherwise = "network" if self._driver.says_why else "unknown" if was_reset is None else "killed"
        return None, otherwise, worked

    def _was_reset(self, connection: Any) -> bool | None:
        fileno = self._ask(self._driver.fileno, connection)
        return None if fileno is None else sockets.was_reset(fileno)

    def _went_down(self, loss: Loss) -> bool:
        slots = [slot for slot in list(self._ledger.slots.values()) if slot.opened is not None and not slot.lost]
        before = [slot for slot in slots if (slot.opened or 0) <= loss.at]
        if any(self._lives(slot) for slot in before):
            return False
        marks = [slot.mark for slot in slots if slot not in before and slot.mark is not None]
        if marks and loss.mark is not None:
            return min(marks) < loss.mark
        refused = self._ledger.refused
        if refused is not None and refused >= loss.at:
            return True
        return bool(before) and loss.otherwise == "killed"

    def _lives(self, slot: Slot) -> bool:
        record = slot.record()
        connection = None if record is None else record.driver_connection
        return connection is not None and self._ask(self._driver.is_lost, connection) is False

    def _book(self, loss: Loss, cause: str) -> None:
        ledger = self._ledger
        ledger.count("disconnects_total", cause, loss.phase)
        explained = loss.explained or cause in {"inactivity", "shutdown"}
        # What others have survived, or this one's neighbour will, is no limit of the path.
        if not explained and loss.silence is not None and loss.silence > ledger.survived:
            ledger.fatal = min(loss.silence, ledger.fatal or loss.silence)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException | None) -> Iterator[object]:
    for each in _chain(error):
        yield getattr(each, "sqlstate", None)
        yield each.args[0] if each.args and isinstance(each.args[0], (int, str)) else None


def _is_reset(error: BaseException | None) -> bool | None:
    """Tell from what the driver raised how the transport ended: true for a reset, ``None`` if that does not show."""
    for each in _chain(error):
        # A write after the peer's close.
        if isinstance(each, (BrokenPipeError, EOFError)):
            return False
        if isinstance(each, OSError):
            return True
    return None
