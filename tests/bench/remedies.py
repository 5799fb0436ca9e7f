"""How many users get an error after every connection of a pool has ended, with each remedy, on real servers.

Each time 200 requests come directly afterwards, 50 at once, on a pool of ten. Every driver, event loop, TLS and plain;
the guard with both orders of taking connections out, and beside a listener that refuses what checkouts are offered.
Then what the server hears of each remedy. Prints Markdown for the README; exits 1 if a user behind the guard got an
error, if the guard sent anything of its own, or if it let the server count a client who left without a word.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop
from prometheus_client import CollectorRegistry
from sqlalchemy import event

sys.path.append(str(Path(__file__).resolve().parent.parent))

from doomed import POOL, REQUESTS, SITUATIONS, SIZE, Refusal, Rush
from support import until
from tls import TlsMariaDB, TlsPostgreSQL
from variants import VARIANTS, Variant, WatchedPool

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from doomed import Situation
    from variants import TlsServer

NOTHING, RECYCLE, PING, GUARD = REMEDIES = ("nothing", "`pool_recycle`", "`pool_pre_ping`", "guard")
# Seconds after which a user gives up, and what none behind the guard should come near to.
IMPATIENT, PATIENT = 3.0, 30.0
# Of the guard alone, for the connections to be silent for long enough at once.
SHORT = 0.2


class Candidate(NamedTuple):
    """A pool to be measured: its remedy, its order, and what another listener refuses (``None``: nothing)."""

    remedy: str
    lifo: bool = False
    fresh: bool | None = None

    def pool(self, variant: Variant, server: TlsServer, recycle: float, **watching: Any) -> WatchedPool:
        """Make it; *watching* is what the guard's ``watch()`` is told."""
        remedies: dict[str, dict[str, Any]] = {RECYCLE: {"pool_recycle": recycle}, PING: {"pool_pre_ping": True}}
        options = remedies.get(self.remedy, {})
        told = {"guard": True, "registry": CollectorRegistry(), **watching} if self.remedy == GUARD else None
        return WatchedPool(variant, server, watching=told, **POOL, pool_use_lifo=self.lifo, **options)


# Those whose connections end together: what a proxy forgets, the server still counts, and PostgreSQL has few to spare.
GROUPS = [
    *([Candidate(GUARD, lifo, fresh) for fresh in (None, False, True)] for lifo in (False, True)),
    [Candidate(each) for each in REMEDIES if each != GUARD],
]
# Errors by name for each pool that was measured.
Results = dict[tuple[Variant, "Situation", str], list[Counter[str]]]


async def measure(
    variant: Variant, server: TlsServer, situation: Situation, candidates: Iterable[Candidate], results: Results
) -> None:
    """End the connections of all *candidates*' pools together, send users to one after the other, note their errors."""
    pools: list[WatchedPool] = []
    rushes: list[Rush] = []
    with situation.enter(server) as way:
        refusals = []
        for each in candidates:
            pool = each.pool(variant, server, situation.recycle, inactivity_limit=situation.path_limit)
            pool.port = way.port
            refusals.append(Refusal(fresh=bool(each.fresh)))
            event.listen(pool.engine, "checkout", refusals[-1])
            pools.append(pool)
            await pool.fill(*[way.statement] * SIZE)
        await way.end()
        for each, pool, refusal in zip(candidates, pools, refusals, strict=True):
            refusal.start(0 if each.fresh is None else REQUESTS)
            rushes.append(Rush(pool, patience=PATIENT if each.remedy == GUARD else IMPATIENT))
            results[variant, situation, each.remedy].append(await rushes[-1].run())
    for rush, pool in zip(rushes, pools, strict=True):
        await rush.end()
        await pool.close()


def run(variant: Variant, work: Coroutine[Any, Any, Any]) -> Any:
    """Run *work* on the variant's event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if variant.driver.uvloop else None) as runner:
        return runner.run(work)


def spread(counts: Iterable[int]) -> str:
    """Return the least and the most of *counts*."""
    least, *_, most = sorted([*counts, *counts])
    return str(least) if least == most else f"{least} to {most}"


def summary(results: Results, situation: Situation, remedy: str) -> str:
    """Return how many users got an error, over all variants; aiomysql on uvloop beside, where it differs."""
    odd: list[int] = []
    others: list[int] = []
    for (variant, where, which), errors in results.items():
        if (where, which) == (situation, remedy):
            is_odd = str(variant.driver) == "aiomysql-uvloop"
            (odd if is_odd else others).extend(each.total() for each in errors)
    if not others:
        return spread(odd)
    is_within = not odd or min(others) <= min(odd) <= max(odd) <= max(others)
    return spread(others) if is_within else f"{spread(others)}; aiomysql on uvloop: {spread(odd)}"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print Markdown."""
    for row in (head, ["---"] * len([*head]), *rows):
        say(f"| {' | '.join(map(str, row))} |")
    say("")


def matrix(servers: dict[str, TlsServer], variants: Iterable[Variant]) -> bool:
    """Measure and print users' errors; tell whether there were none behind the guard."""
    results: Results = defaultdict(list)
    for variant in variants:
        began = time.monotonic()
        for situation in SITUATIONS:
            for candidates in GROUPS:
                server = servers[variant.driver.database]
                run(variant, measure(variant, server, situation, candidates, results))
        print(f"{variant}: {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201
    table(
        [f"all {SIZE} connections", *REMEDIES],
        ([each.title, *(summary(results, each, remedy) for remedy in REMEDIES)] for each in SITUATIONS),
    )
    number = sum(map(len, results.values()))
    guarded = [errors for (*_, remedy), each in results.items() if remedy == GUARD for errors in each]
    say(f"Users' errors of {REQUESTS}, least to most for all drivers and loops, plain and TLS; the guard's with LIFO")
    say(f"too, and beside a listener that refuses. {number} combinations, {len(guarded)} of them of the guard.\n")
    say(f"In detail, as {' / '.join(REMEDIES)}:\n")
    table(
        ["", *(each.title for each in SITUATIONS)],
        (
            [
                variant,
                *(
                    " / ".join(spread([e.total() for e in results[variant, each, remedy]]) for remedy in REMEDIES)
                    for each in SITUATIONS
                ),
            ]
            for variant in variants
        ),
    )
    say("What they got:\n")
    for situation in SITUATIONS:
        for remedy in REMEDIES:
            names = sum(
                (sum(e, Counter()) for (_, s, r), e in results.items() if (s, r) == (situation, remedy)), Counter()
            )
            if names:
                say(f"- {situation.title}, {remedy}: {', '.join(f'{n} {name}' for name, n in names.most_common())}")
    say("")
    return not any(guarded)


def heard(server: TlsServer) -> int:
    """Return how many statements and pings the server has got; on MariaDB from anybody, these questions included."""
    if isinstance(server, TlsMariaDB):
        names = "'Questions', 'Com_admin_commands'"
        return sum(int(row[1]) for row in server.query(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({names})"))
    return len(re.findall(r"LOG:  (?:statement|execute)", server.log.read_text()))


async def counted(server: TlsServer, pool: WatchedPool, *, ended: bool = False) -> int:
    """Return how much the server hears of all requests to *pool*, whose connections are new if they *ended* before."""
    await pool.fill(*["SELECT 1"] * SIZE)
    if ended:
        for each in server.connections():
            server.kill(each)
    if ended and not pool.is_watched:
        await pool.call(pool.engine.dispose)
    before = [heard(server), heard(server)]
    errors = await Rush(pool, patience=PATIENT).run()
    assert not errors, errors
    found = heard(server) - 2 * before[1] + before[0]
    await pool.close()
    return found


async def statements(variant: Variant, server: TlsServer) -> list[int]:
    """Return what the server hears of 200 requests in turn.

    With no remedy, the guard, pre-ping; with no remedy on new connections, and with the guard after they were killed.
    """
    plain, guard, ping = (Candidate(each) for each in (NOTHING, GUARD, PING))
    return [
        await counted(server, plain.pool(variant, server, 0)),
        await counted(server, guard.pool(variant, server, 0, server_limits=False)),
        await counted(server, ping.pool(variant, server, 0)),
        await counted(server, plain.pool(variant, server, 0), ended=True),
        await counted(server, guard.pool(variant, server, 0), ended=True),
    ]


def traffic(servers: dict[str, TlsServer], variants: Iterable[Variant]) -> bool:
    """Print what servers hear; tell whether it is what the requests send, new connections and questions for limits."""
    postgresql = servers["postgresql"]
    postgresql.query("ALTER ROLE app SET log_statement = 'all'")
    rows = {}
    for variant in variants:
        if not variant.tls and not variant.driver.uvloop:
            rows[variant] = run(variant, statements(variant, servers[variant.driver.database]))
    postgresql.query("ALTER ROLE app RESET log_statement")
    say(f"What the server hears of {REQUESTS} requests, in statements and pings:\n")
    table(
        ["", NOTHING, GUARD, PING, f"{NOTHING}, {SIZE} new connections", f"guard, {SIZE} killed"],
        ([v, *r] for v, r in rows.items()),
    )
    # A question for the limits of each new connection.
    return all(bare == guard and killed == new + SIZE for bare, guard, _, new, killed in rows.values())


async def aborted(variant: Variant, server: TlsServer, candidate: Candidate) -> tuple[int, int]:
    """Let living connections be replaced for their silence; return how many clients the server says were aborted.

    And how many were replaced by the guard.
    """

    def count() -> int:
        return int(server.query("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")[0][1])

    pool = candidate.pool(variant, server, SHORT / 2, inactivity_limit=SHORT)
    await pool.fill(*["SELECT 1"] * SIZE)
    await asyncio.sleep(SHORT)
    before = count()
    errors = await Rush(pool, patience=PATIENT).run()
    assert not errors, errors
    await until(lambda: len(server.connections()) == SIZE, "the end of those that were replaced")
    found = count() - before
    replaced = 0 if candidate.remedy == RECYCLE else pool.watched.snapshot().reconnects_total["guard_deadline"]
    await pool.close()
    return found, replaced


def manners(servers: dict[str, TlsServer], variants: Iterable[Variant]) -> bool:
    """Print how many clients MariaDB counts as aborted when living connections are replaced; tell whether none was."""
    rows = {}
    for variant in variants:
        if variant.driver.mysql:
            guard, recycle = (
                run(variant, aborted(variant, servers["mariadb"], Candidate(each))) for each in (GUARD, RECYCLE)
            )
            rows[variant] = (guard[1], guard[0], recycle[0])
    say("Aborted_clients of MariaDB, where living connections were replaced for their silence:\n")
    table(["", "replaced by the guard", "aborted", "aborted with `pool_recycle`"], ([v, *r] for v, r in rows.items()))
    return all(replaced >= SIZE and not lost for replaced, lost, _ in rows.values())


def say(line: str) -> None:
    """Print *line*."""
    print(line, flush=True)  # noqa: T201


def main() -> int:
    """Measure and print everything; return the exit status."""
    # Of connections that remedies other than the guard lose.
    logging.disable()
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:]
    variants = [each for each in VARIANTS if not wanted or any(word in str(each) for word in wanted)]
    with TlsMariaDB() as mariadb, TlsPostgreSQL() as postgresql:
        servers: dict[str, TlsServer] = {"mariadb": mariadb, "postgresql": postgresql}
        good = [act(servers, variants) for act in (matrix, traffic, manners)]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
