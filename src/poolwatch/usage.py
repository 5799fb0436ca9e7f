"""Who used the pool: what each request's connections add up to, by method and route."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from poolwatch.histogram import Histogram, taken
from poolwatch.requests import NOBODY, OTHER, UNMATCHED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from poolwatch.histogram import HistogramSnapshot
    from poolwatch.requests import Account

    Owner = tuple[str, str]


class Total:
    """What an owner has had of the pool.

    Attributes:
        checkouts: Connections handed out.
        waited: Seconds it took to get them, or to be refused by a pool that stayed full.
        held: Seconds for which they were out.
    """

    __slots__ = ("checkouts", "held", "waited")

    def __init__(self) -> None:
        self.checkouts = 0
        self.held = self.waited = 0.0

    def hold(self, seconds: float) -> None:
        """Add a connection that was out for *seconds*; below zero (a clock set back) counts as zero."""
        self.checkouts += 1
        self.held += max(seconds, 0.0)

    def add(self, other: Total) -> None:
        """Add what *other* has had."""
        self.checkouts += other.checkouts
        self.held += other.held
        self.waited += other.waited

    def at_least(self, other: Total) -> None:
        """Take nothing off the holds that *other* has had; waits are never in between two lists."""
        self.checkouts = max(self.checkouts, other.checkouts)
        self.held = max(self.held, other.held)


class Usage:
    """The connections of one pool, by whom they were handed out to.

    ``note``, ``wait`` and ``miss`` are the ``append`` of lists: safe in any thread and inside the garbage collector.
    Everything else is called by one caller at a time.

    Args:
        bounds: The buckets of ``durations``.
        trouble: Told of an error of our own.

    Attributes:
        durations: How long the holds took that began on behalf of a request.
        note: Takes the account and the seconds of such a hold that has ended.
        backlog: Those that were not folded yet.
        wait: Takes the account of a caller, ``None`` outside any request, and the seconds until it had a connection or
            the pool timed out.
        miss: Takes the account of a request that is over and has left a connection out.
    """

    def __init__(self, bounds: tuple[float, ...], trouble: Callable[[str], None]) -> None:
        self.durations = Histogram(bounds)
        self.backlog: list[tuple[Account, float]] = []
        self.note: Callable[[tuple[Account, float]], None] = self.backlog.append
        self._waits: list[tuple[Account | None, float]] = []
        self.wait: Callable[[tuple[Account | None, float]], None] = self._waits.append
        self._missed: list[Account] = []
        self.miss: Callable[[Account], None] = self._missed.append
        self._trouble = trouble
        # Of requests that go on and whose route nobody has asked for yet.
        self._waiting: dict[Account, Total] = {}
        self._ended: dict[Owner, Total] = {}
        self._outside = Total()
        self._shown: dict[Owner, Total] = {}
        self._unreturned: Counter[Owner] = Counter()
        # By the cap, which two middlewares may have each their own of: what one calls other stays that.
        self._routes: dict[int, set[str]] = {}
        self._detailed = False

    @property
    def unreturned(self) -> int:
        """How many connections were still out when their request was over, as of the last fold."""
        return self._unreturned.total()

    def clear(self) -> None:
        """Forget everything."""
        self.durations.clear()
        for each in (self.backlog, self._waits, self._missed, self._waiting, self._ended, self._shown):
            each.clear()
        self._outside = Total()
        self._unreturned.clear()
        self._routes.clear()
        self._detailed = False

    def fold(self) -> None:
        """Book what waits in the lists."""
        for account, seconds in taken(self.backlog):
            self.durations.observe(max(seconds, 0.0))
            self._waiting.setdefault(account, Total()).hold(seconds)
        for who, seconds in taken(self._waits):
            total = self._outside if who is None else self._waiting.setdefault(who, Total())
            total.waited += max(seconds, 0.0)
        self._unreturned.update(self._label(account) for account in taken(self._missed))
        self.durations.fold()
        # Before the end a route may not be decided yet, and this may be a listener.
        self._settle([each for each in self._waiting if each.owner is not None or each.ended])

    def read(
        self, held: Iterable[tuple[Account | None, float]], outside: HistogramSnapshot
    ) -> Mapping[str, Mapping[Owner, float]]:
        """Return the families that tell routes apart, by field and then by method and route, after a fold.

        The optional ones are among them once a middleware has asked for them.

        Args:
            held: The owner of each open hold, and the seconds it has lasted.
            outside: The ended holds that began outside any request.
        """
        self._settle(list(self._waiting))
        totals: dict[Owner, Total] = {NOBODY: Total()}
        for owner, ended in self._ended.items():
            totals.setdefault(owner, Total()).add(ended)
        nobody = totals[NOBODY]
        nobody.add(self._outside)
        nobody.checkouts += outside.count
        nobody.held += outside.sum
        holding: Counter[Owner] = Counter()
        for account, seconds in held:
            owner = NOBODY if account is None else self._label(account)
            totals.setdefault(owner, Total()).hold(seconds)
            holding[owner] += 1
        for owner, total in totals.items():
            # A hold that ends while this is read is in neither list; what was shown once stays.
            total.at_least(self._shown.get(owner, total))
            if total.checkouts or total.waited:
                self._shown[owner] = total
        families: dict[str, Mapping[Owner, float]] = {
            "route_checkouts_total": {owner: total.checkouts for owner, total in self._shown.items()},
            "route_hold_seconds_total": {owner: total.held for owner, total in self._shown.items()},
        }
        if self._detailed:
            families |= {
                "route_checkout_seconds_total": {owner: total.waited for owner, total in self._shown.items()},
                "route_connections": {owner: holding[owner] for owner in self._shown},
                "route_unreturned_total": {owner: self._unreturned[owner] for owner in self._shown},
            }
        return families

    def _settle(self, accounts: list[Account]) -> None:
        for account in accounts:
            self._ended.setdefault(self._label(account), Total()).add(self._waiting.pop(account))

    def _label(self, account: Account) -> Owner:
        """Return the owner as it is exported: routes past the cap are one."""
        terms = account.terms
        self._detailed = self._detailed or terms.details
        method, route = account.resolve(self._trouble)
        routes = self._routes.setdefault(terms.most, set())
        if route not in routes and route not in {UNMATCHED, OTHER}:
            if len(routes) >= terms.most:
                return method, OTHER
            routes.add(route)
        return method, route
