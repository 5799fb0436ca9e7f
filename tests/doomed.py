"""What ends every connection of a pool at once, and two hundred requests that come directly afterwards."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import exc

from proxies import Proxy
from support import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    from variants import TlsServer, WatchedPool

REQUESTS, AT_ONCE = 200, 50
POOL: dict[str, Any] = {"pool_size": 10, "max_overflow": 0}
SIZE: int = POOL["pool_size"]
# Seconds of silence after which servers and proxies are through with a connection here, or sooner.
LIMIT = 1


class Way(NamedTuple):
    """How a pool's connections are to be opened, and what then ends them all.

    Attributes:
        port: Where to.
        end: Ends them.
        statement: What each must have run.
    """

    port: int
    end: Callable[[], Awaitable[None]]
    statement: str = "SELECT 1"


@dataclass(frozen=True)
class Situation:
    """A way for all of a pool's connections to end.

    Attributes:
        title: What they did, for a table.
        loss: What the guard calls it.
        enter: Sets it up on a server.
        recycle: The ``pool_recycle`` of a careful operator, who knows the limit.
        path_limit: What he knows of limits on the way to the server.
    """

    title: str
    loss: str
    enter: Callable[[TlsServer], AbstractContextManager[Way]]
    recycle: float = 3600
    path_limit: float | None = None

    def __str__(self) -> str:
        return self.title


@contextmanager
def _killing(server: TlsServer) -> Iterator[Way]:
    async def end() -> None:
        for each in server.connections():
            server.kill(each)
        await _hear()

    yield Way(server.port, end)


@contextmanager
def _expiring(server: TlsServer) -> Iterator[Way]:
    async def end() -> None:
        began = time.monotonic()
        # And older than the remedy that counts by age allows.
        await until(
            lambda: time.monotonic() - began > LIMIT / 2 and not server.connections(),
            "the server dropping silent connections",
        )
        await _hear()

    # In these sessions alone, and not before they are idle: what takes long on a slow machine is not to be ended too.
    yield Way(server.port, end, server.impatience)


@contextmanager
def _restarting(server: TlsServer) -> Iterator[Way]:
    async def end() -> None:
        server.stop()
        server.start()
        await _hear()

    yield Way(server.port, end)


@contextmanager
def _forgetting(server: TlsServer) -> Iterator[Way]:
    async def end() -> None:
        await until(lambda: proxy.silence > LIMIT, "silence")
        # Now, and these alone, for the same reason.
        proxy.forget()

    with Proxy(server, answers=False) as proxy:
        yield Way(proxy.port, end)


@contextmanager
def _resetting(server: TlsServer) -> Iterator[Way]:
    async def end() -> None:
        proxy.reset()
        await _hear()

    with Proxy(server) as proxy:
        yield Way(proxy.port, end)


async def _hear() -> None:
    """Let the event loop read what was sent."""
    for _ in range(10):
        await asyncio.sleep(0.001)


SITUATIONS = [
    Situation("were killed", "guard_dead", _killing),
    Situation("reached the server's limit", "guard_dead", _expiring, recycle=LIMIT / 2),
    Situation("ended when the server restarted", "guard_dead", _restarting),
    Situation("were forgotten by a silent proxy", "guard_deadline", _forgetting, recycle=LIMIT / 2, path_limit=LIMIT),
    Situation("were reset by a proxy", "guard_dead", _resetting),
]


class Refusal:
    """Another application's ``checkout`` listener, which refuses one connection of a checkout.

    Args:
        fresh: Only if it is one that was opened for it; else the first that it is offered.
    """

    def __init__(self, *, fresh: bool) -> None:
        self._fresh = fresh
        self._turns = iter(range(0))

    def __call__(self, _dbapi: object, record: Any, proxy: Any) -> None:
        """Refuse the connection, or let it pass."""
        known = record.info.get(self, False)
        record.info[self] = True
        if getattr(proxy, "refused", False) or (self._fresh and known):
            return
        # In one step, as threads need it.
        if next(self._turns, None) is not None:
            proxy.refused = True
            raise exc.DisconnectionError

    def start(self, times: int) -> None:
        """Refuse so many connections from now on."""
        self._turns = iter(range(times))


class Rush:
    """Users who all come at once.

    Args:
        pool: Where they get their connections.
        patience: Seconds after which a user gives up.
    """

    def __init__(self, pool: WatchedPool, *, patience: float) -> None:
        self._pool = pool
        self._patience = patience
        self._errors: Counter[str] = Counter()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._left: set[asyncio.Future[None]] = set()
        self._executor = ThreadPoolExecutor(AT_ONCE)

    async def run(self) -> Counter[str]:
        """Serve them all; return what they got instead of an answer, by the error's name."""
        await asyncio.gather(*(self._request() for _ in range(REQUESTS)))
        self._executor.shutdown(wait=False)
        return self._errors

    async def _request(self) -> None:
        async with self._places:
            serving = self._serve()
            # Not wait_for: some drivers do not end before the server has answered, though they are cancelled.
            await asyncio.wait({serving}, timeout=self._patience)
        if not serving.done():
            self._errors["hangs"] += 1
            self._left.add(serving)
            serving.cancel()
        elif error := serving.exception():
            self._errors[type(error).__name__] += 1

    def _serve(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if self._pool.variant.sync:
            return loop.run_in_executor(self._executor, self._pool.use)
        return loop.create_task(self._pool.call(self._pool.use))

    async def end(self) -> None:
        """Wait for what is still under way, once it can end."""
        if self._left:
            await asyncio.wait(self._left, timeout=self._patience)
