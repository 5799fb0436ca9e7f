"""What the guard costs a checkout on a real connection, beside ``pool_pre_ping`` at three distances from the server.

aiomysql on asyncio and a MariaDB of our own; nothing is sent on return, so that a checkout is all there is. First
instructions, counted by callgrind, which nothing else on the machine disturbs; then time, of which the fastest round of
each counts, with a proxy in between that holds every answer back. Exits 1 where the guard takes a quarter of what a
ping takes, or more.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from prometheus_client import CollectorRegistry  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine  # noqa: E402

from poolwatch import watch  # noqa: E402
from poolwatch.demo.servers import MariaDB, find  # noqa: E402
from proxies import Proxy  # noqa: E402

BOUND = 0.25
COUNTED = 2_000
ROUNDS = 8
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "watched": ({}, {}),
    "guarded": ({}, {"guard": True}),
    "pre-ping": ({"pool_pre_ping": True}, {}),
}


class Distant(Proxy):
    """A proxy that holds every answer of the server back for *seconds*."""

    def __init__(self, server: MariaDB, seconds: float) -> None:
        super().__init__(server)
        self._seconds = seconds

    def _forward(self, data: bytes, sink: asyncio.StreamWriter, pair: Any) -> None:
        if sink is pair.client:
            self._loop.call_later(self._seconds, sink.write, data)
        else:
            super()._forward(data, sink, pair)


def make(mode: str, url: str) -> AsyncEngine:
    """Return an engine of *mode*."""
    options, watching = MODES[mode]
    engine = create_async_engine(url, pool_reset_on_return=None, **options)
    watch(engine, registry=CollectorRegistry(), **watching)
    return engine


async def check_out(engine: AsyncEngine, times: int) -> float:
    """Take a connection and give it back so often; return the seconds that one such turn took."""
    began = time.perf_counter()
    for _ in range(times):
        async with engine.connect():
            pass
    return (time.perf_counter() - began) / times


async def be_counted(mode: str, url: str) -> None:
    """Have callgrind, under which this process runs, count the instructions of so many checkouts and nothing else."""
    engine = make(mode, url)
    await check_out(engine, 100)
    _control("on")
    await check_out(engine, COUNTED)
    _control("off")
    await engine.dispose()


def _control(state: str) -> None:
    command = [find("callgrind_control", "valgrind"), "-i", state, str(os.getpid())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def instructions(mode: str, url: str) -> int:
    """Return the instructions that one checkout of *mode* takes in this process."""
    valgrind = [
        find("valgrind", "valgrind"),
        "--tool=callgrind",
        "--instr-atstart=no",
        "--callgrind-out-file=/dev/null",
    ]
    done = subprocess.run([*valgrind, sys.executable, __file__, mode, url], check=True, capture_output=True, text=True)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    assert collected is not None, done.stderr
    return int(collected[1]) // COUNTED


async def times(url: str, turns: int) -> dict[str, float]:
    """Return the seconds that one checkout takes in each mode, in the fastest of some rounds in turn."""
    engines = {mode: make(mode, url) for mode in MODES}
    fastest = dict.fromkeys(MODES, float("inf"))
    for _ in range(ROUNDS):
        for mode, engine in engines.items():
            fastest[mode] = min(fastest[mode], await check_out(engine, turns))
    for engine in engines.values():
        await engine.dispose()
    return fastest


def say(line: str) -> None:
    """Print *line*."""
    print(line, flush=True)  # noqa: T201


def main() -> bool:
    """Measure and print; return whether the guard costs too much."""
    ratios = []
    with MariaDB() as server:
        counts = {mode: instructions(mode, server.url()) for mode in MODES}
        say("instructions a checkout, aiomysql: " + ", ".join(f"{mode} {count:,}" for mode, count in counts.items()))
        ratios.append((counts["guarded"] - counts["watched"]) / (counts["pre-ping"] - counts["watched"]))
        for milliseconds in (0, 1, 20):
            with ExitStack() as between:
                port = server.port
                if milliseconds:
                    port = between.enter_context(Distant(server, milliseconds / 1000)).port
                took = asyncio.run(
                    times(server.url().replace(str(server.port), str(port)), 20 if milliseconds else 1_000)
                )
            say(
                f"{milliseconds} ms away: "
                + ", ".join(f"{mode} {seconds * 1e6:,.0f} µs" for mode, seconds in took.items())
            )
            ratios.append((took["guarded"] - took["watched"]) / (took["pre-ping"] - took["watched"]))
    say(
        "the guard / a ping = "
        + ", ".join(f"{ratio:.3f}" for ratio in ratios)
        + f" (instructions, then by distance), less than {BOUND} is allowed"
    )
    return max(ratios) >= BOUND


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(be_counted(*sys.argv[1:]))
    else:
        sys.exit(main())
