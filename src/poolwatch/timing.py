"""The timed pool class: how long callers wait, and how it ends.

No event of SQLAlchemy's marks the start of a wait, a timeout or a cancelled wait.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc

from poolwatch import classes, privates
from poolwatch.listeners import dialing
from poolwatch.losses import COUNTED
from poolwatch.requests import current
from poolwatch.server import is_from_server
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import Pool, PoolProxiedConnection

    from poolwatch.ledger import Ledger
    from poolwatch.slot import Slot


class TimedPool:
    """Replaces the class of one engine's pool, and gives it back.

    Args:
        ledger: Where checkouts and failures are booked.
        leave: Called whenever the last caller has left ``pool.connect()`` after :meth:`stop`.

    Attributes:
        installed: It is on.
        stopped: Not empty once it is to stop; a list, because every checkout looks.
    """

    def __init__(self, ledger: Ledger, *, leave: Callable[[], None]) -> None:
        self._ledger = ledger
        self._leave = leave
        self.stopped: list[bool] = []
        self.installed = False

    def install(self, pool: Pool) -> None:
        """Give *pool* a subclass of its class; raises TypeError where that cannot be done."""
        classes.extend(pool, {"connect": lambda base: self._method(base, pool)}, self.stopped)
        self.installed = True

    def stop(self) -> bool:
        """Book nothing from now on; return whether nobody is inside ``pool.connect()``."""
        self.stopped.append(True)
        return not self._ledger.pending

    def _method(self, base: type[Pool], pool: Pool) -> Callable[[Pool], PoolProxiedConnection]:  # noqa: C901, PLR0915
        ledger, clock, pending, key = self._ledger, self._ledger.clock, self._ledger.pending, self._ledger.key
        enter, leave, stopped = pending.append, pending.remove, self.stopped
        observe, observe_idle, wait = ledger.checkouts.observe, ledger.idles.observe, ledger.usage.wait
        original, overflow, most = base.connect, privates.overflow, privates.most_overflow(pool)
        queues = most < inf

        # One function, because every checkout passes through: each call inside would cost more than its branch.
        def connect(self_: Any) -> PoolProxiedConnection:  # noqa: C901, PLR0912
            if stopped and not pending:
                return original(self_)
            enter(self_)
            began = clock()
            if queues:
                try:
                    if overflow(self_) >= most and not self_.checkedin():
                        ledger.count("checkout_waits_total")
                except Exception as error:  # noqa: BLE001
                    ledger.trouble(describe("pool.connect", error))
            try:
                proxy = original(self_)
            except BaseException as error:
                # Not so in a child that was forked meanwhile.
                if self_ in pending:
                    leave(self_)
                self._failed(error, clock() - began)
                if stopped:
                    self._left()
                raise
            try:
                slot: Slot = proxy.record_info[key]  # type: ignore[index]
                # Not set where a pool hands a thread the proxy that it already has.
                if slot.arrived:
                    slot.arrived, now = False, clock()
                    # Some pools hand out again what a caller still holds, and report one return for both.
                    account, held, slot.held = slot.account, slot.held, None
                    if held is not None:
                        ledger.held(slot, account, now - held)
                    slot.account, slot.held = slot.caller, now
                    if slot.account is not None:
                        slot.account.took(slot, ledger)
                    observe(now - began)
                    wait((slot.account, now - began))
                    if slot.returned is not None:
                        observe_idle(now - slot.returned)
                        slot.returned = None
            except KeyError:
                # Opened before we listened; booked as soon as we do.
                pass
            except Exception as error:  # noqa: BLE001
                ledger.trouble(describe("pool.connect", error))
            finally:
                # Not before: a reader takes who has arrived and is not pending for one who began to wait before us.
                if self_ in pending:
                    leave(self_)
            if stopped:
                self._left()
            return proxy

        connect.__doc__ = original.__doc__
        return connect

    def _failed(self, error: BaseException, seconds: float) -> None:
        try:
            slot = dialing.get()
            dialing.set(None)
            if isinstance(error, exc.TimeoutError):
                self._ledger.timeouts.observe(seconds)
                self._ledger.usage.wait((current.get(), seconds))
            elif not isinstance(error, Exception):
                self._ledger.count("checkout_failures_total", "cancelled")
            elif slot is not None:
                if not is_from_server(error) and "FATAL" not in str(error):
                    # libpq passes on no code of an error that it met while it connected.
                    self._ledger.refused = self._ledger.clock()
                self._ledger.count("connect_failures_total")
                self._ledger.count("checkout_failures_total", "connect")
            elif not hasattr(error, COUNTED):
                self._ledger.count("checkout_failures_total", "other")
        except Exception as trouble:  # noqa: BLE001
            self._ledger.trouble(describe("pool.connect", trouble))

    def _left(self) -> None:
        try:
            if not self._ledger.pending:
                self._leave()
        except Exception as error:  # noqa: BLE001
            self._ledger.trouble(describe("close", error))
