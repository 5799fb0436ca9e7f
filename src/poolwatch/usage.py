"""Who used the pool: what each request's holds add up to, by method and route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.histogram import Histogram
from poolwatch.requests import NOBODY, OTHER, UNMATCHED
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from poolwatch.histogram import HistogramSnapshot
    from poolwatch.requests import Account

    Owner = tuple[str, str]


class Usage:
    """The holds of one pool that began on behalf of a request.

    ``note`` is the ``append`` of the list ``backlog``, of accounts and seconds: safe in any thread and inside the
    garbage collector. Everything else is called by one caller at a time.

    Args:
        bounds: The buckets of ``durations``.
        trouble: Told of an error of our own.

    Attributes:
        durations: How long they took.
    """

    def __init__(self, bounds: tuple[float, ...], trouble: Callable[[str], None]) -> None:
        self.durations = Histogram(bounds)
        self.backlog: list[tuple[Account, float]] = []
        self.note: Callable[[tuple[Account, float]], None] = self.backlog.append
        self._trouble = trouble
        # Of requests that go on and whose route nobody has asked for yet.
        self._waiting: dict[Account, list[float]] = {}
        self._ended: dict[Owner, list[float]] = {}
        self._shown: dict[Owner, tuple[float, float]] = {}
        self._routes: set[str] = set()

    def clear(self) -> None:
        """Forget everything."""
        self.durations.clear()
        for each in (self.backlog, self._waiting, self._ended, self._shown, self._routes):
            each.clear()

    def fold(self) -> None:
        """Book the holds that wait in the backlog; one below zero (a clock set back) counts as zero."""
        batch = self.backlog[:]
        # Only what was copied: others append meanwhile.
        del self.backlog[: len(batch)]
        for account, seconds in batch:
            lasted = max(seconds, 0.0)
            self.durations.observe(lasted)
            _add(self._waiting.setdefault(account, [0, 0.0]), 1, lasted)
        self.durations.fold()
        # Before the end a route may not be decided yet, and this may be a listener.
        self._settle([each for each in self._waiting if each.owner is not None or each.ended])

    def read(
        self, held: Iterable[tuple[Account | None, float]], outside: HistogramSnapshot
    ) -> tuple[dict[Owner, int], dict[Owner, float]]:
        """Return checkouts and seconds held, by method and route, after a fold.

        Args:
            held: The owner of each open hold, and the seconds it has lasted.
            outside: The ended holds that began outside any request.
        """
        self._settle(list(self._waiting))
        totals = {owner: [*total] for owner, total in self._ended.items()}
        _add(totals.setdefault(NOBODY, [0, 0.0]), outside.count, outside.sum)
        for account, seconds in held:
            owner = NOBODY if account is None else self._label(account)
            _add(totals.setdefault(owner, [0, 0.0]), 1, max(seconds, 0.0))
        for owner, (count, seconds) in totals.items():
            before = self._shown.get(owner, (0, 0.0))
            # A hold that ends while this is read is in neither list; what was shown once stays.
            if count or before[0]:
                self._shown[owner] = (max(count, before[0]), max(seconds, before[1]))
        checkouts = {owner: int(count) for owner, (count, _) in self._shown.items()}
        return checkouts, {owner: seconds for owner, (_, seconds) in self._shown.items()}

    def _settle(self, accounts: list[Account]) -> None:
        for account in accounts:
            _add(self._ended.setdefault(self._label(account), [0, 0.0]), *self._waiting.pop(account))

    def _label(self, account: Account) -> Owner:
        """Return the owner as it is exported: routes past the cap are one."""
        try:
            method, route = account.resolve()
        except Exception as error:  # noqa: BLE001
            self._trouble(describe("route", error))
            method, route = account.owner = (OTHER, UNMATCHED)
            account.scope = None
        if route not in self._routes and route not in {UNMATCHED, OTHER}:
            if len(self._routes) >= account.most:
                return method, OTHER
            self._routes.add(route)
        return method, route


def _add(total: list[float], count: float, seconds: float) -> None:
    total[0] += count
    total[1] += seconds
