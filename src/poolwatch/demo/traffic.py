"""Uneven load: bursts of concurrent requests, then lulls, some of which the pool's connections do not survive."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass

# The pools that the application has; each has its own paths, below its name.
POOLS = ("bare", "guarded")

# Seconds without a request, from-to, in turn: the server closes every connection, twice, the first as soon as it can be
# shown; harmless; most of the limit.
_LULLS = ((23.0, 25.0), (5.0, 8.0), (23.0, 27.0), (15.0, 18.0))

# More than the pool holds, all of them slow: some wait, some wait in vain.
_RUSH = 18

# Seconds for which a slow request holds its connection, from-to.
_HOLD = (1.0, 2.0)


@dataclass
class Tally:
    """What the users of one pool have got so far.

    Attributes:
        requests: Answers.
        lost: Those that were errors because the connection was dead.
        busy: Those that were errors because no connection became free in time.
        other: Other errors.
        error: The text of the last error that was not of the second kind; empty before.
    """

    requests: int = 0
    lost: int = 0
    busy: int = 0
    other: int = 0
    error: str = ""

    def count(self, status: int, text: str) -> None:
        """Count the answer that has this *status* and *text*."""
        self.requests += 1
        if status == 503:  # noqa: PLR2004
            self.busy += 1
        elif status >= 500:  # noqa: PLR2004
            self.error = text
            if status == 500:  # noqa: PLR2004
                self.lost += 1
            else:
                self.other += 1


class Traffic:
    """Users of the application at *host* and *port*; whatever one asks of a pool, another asks of each other pool.

    Args:
        host: Where it is reached.
        port: Where it is reached.
        seed: The same seed makes the same requests and lulls.

    Attributes:
        tallies: What they have got so far, by pool.
    """

    def __init__(self, host: str, port: int, *, seed: int) -> None:
        self.tallies = {name: Tally() for name in POOLS}
        self._host = host
        self._port = port
        # Nothing here is a secret: the load is to be the same every time.
        self._random = random.Random(seed)  # noqa: S311
        self._resumes: float | None = None

    def doing(self) -> str:
        """Say in a word or two what the users do now, and for how long they will be quiet."""
        resumes = self._resumes
        return "requests" if resumes is None else f"quiet {max(resumes - time.monotonic(), 0):2.0f}s"

    async def run(self) -> None:
        """Ask until cancelled; raises OSError where the application does not answer."""
        for turn, (shortest, longest) in enumerate(itertools.cycle(_LULLS), start=1):
            await self._wave(5, slow=0.0)
            for _ in range(self._random.randint(3, 6)):
                await asyncio.sleep(self._random.uniform(0.2, 1.2))
                await self._wave(self._random.choice((1, 2, 3, 5, 6)), slow=0.2)
            if turn % len(_LULLS) == 0:
                await self._wave(_RUSH, slow=1.0)
            seconds = self._random.uniform(shortest, longest)
            self._resumes = time.monotonic() + seconds
            await asyncio.sleep(seconds)
            self._resumes = None

    async def _wave(self, requests: int, *, slow: float) -> None:
        async with asyncio.TaskGroup() as users:
            for _ in range(requests):
                is_slow = self._random.random() < slow
                what = (
                    f"report/{self._random.uniform(*_HOLD):.2f}" if is_slow else f"items/{self._random.randint(1, 99)}"
                )
                for pool in POOLS:
                    users.create_task(self._user(pool, what))

    async def _user(self, pool: str, what: str) -> None:
        self.tallies[pool].count(*await _get(self._host, self._port, f"/{pool}/{what}"))


async def _get(host: str, port: int, path: str) -> tuple[int, str]:
    """Return the status and the body of the answer to one GET."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
    finally:
        writer.close()
    if not answer:
        msg = f"no answer to GET {path}"
        raise ConnectionError(msg)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(maxsplit=2)[1]), body.decode()
