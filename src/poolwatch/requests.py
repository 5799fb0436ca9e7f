"""Whose request this is: an account in a context variable, which a checkout finds and hangs on its connection."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolwatch.trouble import describe

if TYPE_CHECKING:
    from collections.abc import Callable

# Labels of what has no route of its own, and of what began outside any request.
UNMATCHED = "unmatched"
OTHER = "other"
NOBODY = ("none", "none")
# What a route is found by.
_KEPT = (
    *("type", "method", "scheme", "server", "path", "root_path", "app_root_path"),
    *("app", "router", "endpoint", "route", "fastapi"),
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a middleware's operator wants to know of its requests.

    Attributes:
        route_of: Returns the method and the route's template of a scope.
        most: How many routes a pool tells apart.
        details: Export the families that are optional.
        traces: Keep where in the code each connection is checked out.
    """

    route_of: Callable[[Any], tuple[str, str]]
    most: int
    details: bool = False
    traces: bool = False


class Account:
    """One request, as the connections know it that are checked out on its behalf.

    Threads and tasks that a request starts find it in their copies of its context, also after its end.

    Attributes:
        scope: The ASGI scope; after the end a tuple of what is kept of it; ``None`` once the route is known.
        terms: What is to be known of it.
        owner: Method and route's template; ``None`` until somebody needed it.
        ledger: That of the pool it had its latest connection of; ``None`` if it had none.
        ended: The request is over, background tasks included.
        taken: The slots of connections that are out on its behalf, each with the ledger of its pool.
        missing: Those of them that were found out after the end, each with whether that was logged; ``None`` before.
    """

    __slots__ = ("ended", "ledger", "missing", "owner", "scope", "taken", "terms")

    def __init__(self, scope: Any, terms: Terms) -> None:
        self.scope = scope
        self.terms = terms
        self.owner: tuple[str, str] | None = None
        self.ended = False
        self.taken: dict[Any, Any] = {}
        self.ledger: Any = None
        self.missing: dict[Any, bool] | None = None

    def resolve(self, trouble: Callable[[str], None]) -> tuple[str, str]:
        """Return method and route, which stay what they are from then on; the scope is let go. Never raises.

        *trouble*: told if the application's routes cannot be asked.
        """
        # In this order: another thread lets the scope go once there is an owner.
        scope, owner = self.scope, self.owner
        if owner is None:
            if type(scope) is tuple:
                scope = {key: value for key, value in zip((*_KEPT, "headers"), scope, strict=True) if value is not None}
            try:
                owner = self.terms.route_of(scope)
            except Exception as error:  # noqa: BLE001
                trouble(describe("route", error))
                owner = (OTHER, UNMATCHED)
            # Now and once: the application is not asked again.
            self.owner = owner
        if self.ended:
            self.scope = None
        return owner

    def slim(self) -> None:
        """Keep of the scope what a route is found by: tasks and transports that go on keep this account.

        Never raises; a scope that is not as ASGI has it is kept whole.
        """
        scope = self.scope
        if scope is None:
            return
        # Of the cost of a request that takes no connection this is most; a dictionary costs twice as much.
        try:
            host: list[Any] = []
            for header in scope["headers"]:
                if header[0] == b"host":
                    host = [header]
                    break
            self.scope = (*map(scope.get, _KEPT), host)
        except Exception:  # noqa: BLE001, S110
            pass

    def took(self, slot: Any, ledger: Any) -> None:
        """Note that the connection of *slot* was handed out on its behalf."""
        self.ledger = ledger
        self.taken[slot] = ledger

    def gave_back(self, slot: Any, seconds: float) -> None:
        """Note that it is no longer out, after *seconds*."""
        ledger = self.taken.pop(slot, None)
        if self.missing and self.missing.pop(slot, False):
            ledger.late.append((self, seconds))


current: ContextVar[Account | None] = ContextVar("poolwatch.request", default=None)
