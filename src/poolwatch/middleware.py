"""The ASGI middleware: serves ``/metrics`` and watches the engines it was given."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from poolwatch.errors import ArgumentError, ArgumentTypeError, PoolwatchError
from poolwatch.watch import watch, watches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from poolwatch.watch import Watch

logger = logging.getLogger("poolwatch")

AnyEngine = Engine | AsyncEngine


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

    Raises:
        ArgumentTypeError: An argument has the wrong type.
        ArgumentError: *metrics_path* is no path below the root.
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
    ) -> None:
        self.app = app
        self._engines = _engines(engine, engines)
        self._path = _path(metrics_path)
        if not isinstance(registry, CollectorRegistry):
            msg = f"registry must be a CollectorRegistry, got {type(registry).__name__}; leave it out for REGISTRY"
            raise ArgumentTypeError(msg)
        if authorize is not None and not callable(authorize):
            msg = f"authorize must be a function of the scope, got {type(authorize).__name__}; leave it out for none"
            raise ArgumentTypeError(msg)
        self._registry = registry
        self._authorize = authorize
        self._exposition = make_asgi_app(registry)
        self._made: list[Watch] | None = None
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if self._made is None:
            self._watch_or_log()
        if self._path is not None and scope["type"] == "http" and _path_below_root(scope) == self._path:
            await self._scrape(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._watch()
        except PoolwatchError as error:
            # Raised from here, servers would take it for an application without a lifespan and go on.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"poolwatch: {error}"})
            return
        try:
            await self.app(scope, receive, send)
        finally:
            made, self._made = self._made, None
            for each in made or ():
                each.close()

    def _watch(self) -> None:
        if self._made is not None:
            return
        made: list[Watch] = []
        self._made = made
        for name, engine in self._engines:
            before = watches(self._registry)
            watched = watch(engine, name=name, registry=self._registry)
            if watched not in before:
                made.append(watched)

    def _watch_or_log(self) -> None:
        try:
            self._watch()
        except PoolwatchError:
            logger.exception("poolwatch: a pool is not watched; requests are served without")

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
                await _answer(send, 403, b"Forbidden.\n")
                return
        if not self._warned and not watches(self._registry):
            self._warned = True
            logger.warning(
                "poolwatch: /metrics was asked for and no engine is watched; call watch(engine), or give the"
                " middleware engine=..., with the same registry"
            )
        await self._exposition(_readable(scope), receive, _without_body(send) if method == "HEAD" else send)


def _engines(
    engine: AnyEngine | None, engines: Iterable[AnyEngine] | Mapping[str, AnyEngine] | None
) -> list[tuple[str | None, AnyEngine]]:
    pairs: list[tuple[str | None, AnyEngine]] = [] if engine is None else [(None, engine)]
    if isinstance(engines, Mapping):
        pairs += engines.items()
    elif isinstance(engines, Iterable) and not isinstance(engines, (str, bytes)):
        pairs += [(None, each) for each in engines]
    elif engines is not None:
        msg = f"engines must be several engines or a mapping of names to engines, got {type(engines).__name__}"
        raise ArgumentTypeError(msg)
    for name, each in pairs:
        if not isinstance(each, (Engine, AsyncEngine)):
            msg = (
                f"engine must be an Engine or AsyncEngine, got {type(each).__name__}; pass what create_engine() or"
                " create_async_engine() returned"
            )
            raise ArgumentTypeError(msg)
        if name is not None and (not isinstance(name, str) or not name):
            msg = f"engines must have names that are text and not empty, got {name!r}"
            raise ArgumentError(msg)
    return pairs


def _path(metrics_path: object) -> str | None:
    if metrics_path is None:
        return None
    if not isinstance(metrics_path, str):
        msg = f"metrics_path must be text such as '/metrics', or None, got {type(metrics_path).__name__}"
        raise ArgumentTypeError(msg)
    path = metrics_path.rstrip("/")
    if not path.startswith("/") or "?" in path or "#" in path:
        msg = f"metrics_path must begin with a slash and name a path, got {metrics_path!r}; try '/metrics', or None"
        raise ArgumentError(msg)
    return path


def _path_below_root(scope: Scope) -> str:
    """Return the path without the server's or mount's prefix, which servers do and do not repeat in it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
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
