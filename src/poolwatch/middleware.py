"""The ASGI middleware: serves ``/metrics`` and watches the engines it was given."""

from __future__ import annotations

import inspect
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app

from poolwatch import arguments
from poolwatch.errors import PoolwatchError
from poolwatch.requests import Account, Terms, current
from poolwatch.routes import Routes
from poolwatch.unreturned import close
from poolwatch.watch import watch, watches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from poolwatch.arguments import AnyEngine
    from poolwatch.attachment import Watch

logger = logging.getLogger("poolwatch")

REQUESTS = frozenset(("http", "websocket"))


class PoolWatchMiddleware:
    """Serves the metrics of all watched pools, and of the registry's other metrics, at one path.

    Engines given here are watched at the first ASGI event, after any fork of the server's, until the lifespan ends.
    Everything else passes untouched.

    Args:
        app: The application.
        engine: An engine to watch, with default arguments; call :func:`~poolwatch.watch` yourself for others.
        engines: Several engines, or a mapping of names to engines.
        metrics_path: Where to answer, below the server's or mount's ``root_path``; ``None``: nowhere, the application
            has an endpoint of its own.
        registry: What is served, and where engines given here are registered.
        authorize: Called with the scope of each scrape, sync or async; a false answer is a 403.
        route_details: Export three more series for each route: seconds waited for connections, connections held
            now, connections not given back.
        max_routes: How many routes each pool tells apart; connections of any further one are counted as ``other``.
        trace_checkouts: Say in the log line about a connection that was not given back where in the code it was checked
            out: functions, files and lines, read at each checkout.

    Raises:
        ArgumentTypeError: An argument has the wrong type.
        ArgumentError: *metrics_path* is no path below the root, or *max_routes* is negative.
    """

    def __init__(  # noqa: PLR0913
        self,
        app: ASGIApp,
        *,
        engine: AnyEngine | None = None,
        engines: Iterable[AnyEngine] | Mapping[str, AnyEngine] | None = None,
        metrics_path: str | None = "/metrics",
        registry: CollectorRegistry = REGISTRY,
        authorize: Callable[[Scope], bool | Awaitable[bool]] | None = None,
        route_details: bool = False,
        max_routes: int = 100,
        trace_checkouts: bool = False,
    ) -> None:
        self.app = app
        self._engines = arguments.engine_list(engine, engines)
        self._path = arguments.path(metrics_path)
        self._registry = arguments.registry(registry)
        arguments.authorize(authorize)
        self._authorize = authorize
        self._terms = Terms(
            Routes(),
            arguments.max_routes(max_routes),
            details=arguments.flag("route_details", route_details),
            traces=arguments.flag("trace_checkouts", trace_checkouts),
        )
        self._exposition = make_asgi_app(registry)
        self._made: list[Watch] | None = None
        self._scraped = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scrape, or pass the event on."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if self._made is None and (error := self._watch()) is not None:
            logger.error("poolwatch: a pool is not watched, requests are served without: %s", error)
        path = self._path
        # Cheaply first: nearly every request is another.
        if path is not None and kind == "http" and path in scope["path"] and _path_below_root(scope) == path:
            await self._scrape(scope, receive, send)
            return
        outer = current.get()
        if kind not in REQUESTS or (outer is not None and outer.scope is scope):
            # Of two of us around one application, the outer one knows when the request has ended.
            await self.app(scope, receive, send)
            return
        account = Account(scope, self._terms)
        current.set(account)
        collected = False
        try:
            await self.app(scope, receive, send)
        except GeneratorExit:
            # Nobody waits for it any more, and this may be the garbage collector, in the middle of anything.
            collected = True
            raise
        finally:
            # Without the token, which is of no use to who closes a coroutine in another context; and not in that one,
            # which may be a request's that goes on.
            if current.get() is account:
                current.set(outer)
            account.ended = True
            if account.ledger is not None:
                close(account, collected=collected)
            else:
                account.slim()

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._watch()
        try:
            if error is not None:
                # Without this, servers take it for an application that has no lifespan, and go on.
                await receive()
                await send({"type": "lifespan.startup.failed", "message": f"poolwatch: {error}"})
                raise error
            await self.app(scope, receive, send)
        finally:
            made, self._made = self._made, None
            for each in made or ():
                each.close()

    def _watch(self) -> PoolwatchError | None:
        """Watch every engine that can be; return the first mistake of the operator's."""
        if self._made is not None:
            return None
        made: list[Watch] = []
        self._made = made
        mistake: PoolwatchError | None = None
        for name, engine in self._engines:
            before = watches(self._registry)
            try:
                watched = watch(engine, name=name, registry=self._registry)
            except PoolwatchError as error:
                mistake = mistake or error
            except Exception:
                logger.exception("poolwatch: an error of its own, a pool is not watched; please report it")
            else:
                made += [watched] if watched not in before else []
        return mistake

    async def _scrape(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        if method not in {"GET", "HEAD"}:
            await _answer(send, 405, b"Only GET and HEAD.\n", (b"allow", b"GET, HEAD"))
            return
        if self._authorize is not None:
            allowed = self._authorize(scope)
            if inspect.isawaitable(allowed):
                allowed = await allowed
            if not allowed:
                await _answer(_without_body(send) if method == "HEAD" else send, 403, b"Forbidden.\n")
                return
        if not self._scraped:
            self._scraped = True
            self._look_around(scope)
        await self._exposition(_readable(scope), receive, _without_body(send) if method == "HEAD" else send)

    def _look_around(self, scope: Scope) -> None:
        """Say what the first scrape finds that nobody can have meant."""
        if not watches(self._registry):
            logger.warning(
                "poolwatch: %s was asked for and no engine is watched; call watch(engine), or give the middleware"
                " engine=..., with the same registry",
                self._path,
            )
        # Routes of the application's making may raise.
        with suppress(Exception):
            # A mount matches with the slash alone.
            for path in (scope["path"], scope["path"] + "/"):
                _, template = self._terms.route_of({**scope, "path": path})
                if self._path and template.removesuffix("/{path:path}").endswith(self._path):
                    logger.warning(
                        "poolwatch: the application has a route for %s, which poolwatch answers in its place; if that"
                        " one serves metrics that are not here, give the middleware metrics_path=None, and the"
                        " application's own shows the pools too where it serves the same registry",
                        self._path,
                    )
                    return


def _path_below_root(scope: Scope) -> str:
    """Return the path without the server's or mount's prefix, which servers do and do not repeat in it."""
    path: str = scope["path"]
    # Some servers have none.
    root: str = (scope.get("root_path") or "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path.rstrip("/")


def _readable(scope: Scope) -> Scope:
    """Keep what the exposition reads, in the encoding it insists on."""

    def utf8(value: bytes) -> bytes:
        return value.decode("utf-8", "replace").encode()

    headers = [
        (name.lower(), utf8(value))
        for name, value in scope["headers"]
        if name.lower() in {b"accept", b"accept-encoding"}
    ]
    return {**scope, "headers": headers, "query_string": utf8(scope.get("query_string", b""))}


def _without_body(send: Send) -> Send:
    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_headers


async def _answer(send: Send, status: int, text: bytes, *headers: tuple[bytes, bytes]) -> None:
    about = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*about, *headers]})
    await send({"type": "http.response.body", "body": text})
