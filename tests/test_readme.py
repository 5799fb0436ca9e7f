"""The README's own code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from poolwatch.demo.servers import free_port
from poolwatch.watch import watch, watches
from support import use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from poolwatch.demo.servers import MariaDB

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
URL = "mysql+aiomysql://app:app@127.0.0.1/app"


def run(block: str, names: dict[str, Any], **others: str) -> None:
    """Run *block* of the README's code, with *others* in place of its database or port."""
    for key, value in others.items():
        (block,) = [block.replace({"url": URL, "port": "9100"}[key], value)]
    exec(block, names)  # noqa: S102


def http(app: Any) -> httpx.AsyncClient:
    """Return a client of *app*."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.fixture
async def names(mariadb: MariaDB) -> AsyncIterator[dict[str, Any]]:
    """Return what the first example leaves behind, on a real database; at the end nobody watches it."""
    found: dict[str, Any] = {}
    run(BLOCKS[0], found, url=mariadb.url())
    yield found
    for each in watches(REGISTRY):
        each.close()
    await found["engine"].dispose()


@pytest.mark.anyio
async def test_the_middleware_and_the_guard(names: dict[str, Any]) -> None:
    """The first two examples do what the text around them says, as they stand."""
    async with http(names["app"]) as client:
        assert 'sqlalchemy_pool_connections{pool="app",state="idle"} 0.0' in (await client.get("/metrics")).text
        run(BLOCKS[1], names)
        assert re.search(r'sqlalchemy_pool_info{.*guard="true"', (await client.get("/metrics")).text)


@pytest.mark.anyio
async def test_a_lifespan(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The third one, too."""
    run(BLOCKS[2], names)
    async with names["lifespan"](names["app"]), names["engine"].connect(), http(names["app"]) as client:
        text = (await client.get("/internal/metrics")).text
    assert 'sqlalchemy_pool_connections{pool="orders",state="checked_out"} 1.0' in text
    assert 'sqlalchemy_pool_inactivity_limit_seconds{pool="orders",source="configured"} 350.0' in text
    assert "'idle': 1" in capsys.readouterr().out


@pytest.mark.anyio
async def test_beside_metrics_that_are_there(names: dict[str, Any]) -> None:
    """The other's endpoint shows what both have to tell."""
    run(BLOCKS[3], names)
    try:
        async with http(names["app"]) as client:
            await client.get("/nothing")
            text = (await client.get("/metrics")).text
    finally:
        for each in {each for name, each in REGISTRY._names_to_collectors.items() if name.startswith("http_")}:
            REGISTRY.unregister(each)
    assert 'sqlalchemy_pool_size{pool="app"} 5.0' in text
    assert 'http_requests_total{handler="none"' in text


@pytest.mark.anyio
async def test_another_port(names: dict[str, Any]) -> None:
    """A scrape is answered there, and the application's own path is free."""
    port = free_port()
    run(BLOCKS[4], names, port=str(port))
    async with names["lifespan"](names["app"]), http(names["app"]) as client:
        assert 404 == (await client.get("/metrics")).status_code
        async with httpx.AsyncClient() as outside:
            assert "sqlalchemy_pool_size{" in (await outside.get(f"http://127.0.0.1:{port}/metrics")).text


def test_without_asgi(mariadb: MariaDB) -> None:
    """A process of its own does its work, is scraped meanwhile, and ends."""
    program, port = BLOCKS[5].replace(URL, mariadb.url()), str(free_port())
    works = re.search(r" +print\(.*\n", program)
    assert works
    indent = " " * (len(works[0]) - len(works[0].lstrip()))
    scrape = f'{indent}print(b\'pool="worker"\' in urlopen("http://127.0.0.1:9100/metrics").read())\n'
    program = program.replace(works[0], works[0] + scrape).replace("9100", port)
    program = "from urllib.request import urlopen\n" + program
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "1\nTrue\n" == ended.stdout


@pytest.mark.anyio
async def test_in_tests(names: dict[str, Any]) -> None:
    """The test passes with one connection, and fails with two; the next one begins at 0."""
    engine = names["engine"]

    async def orders(request: Request) -> PlainTextResponse:
        for _ in range(int(request.query_params.get("times", 1))):
            await use(engine)
        return PlainTextResponse("done")

    names["app"] = app = Starlette(routes=[Route("/orders/{id}", orders)])
    app.add_middleware(names["PoolWatchMiddleware"], engine=engine)
    run(BLOCKS[6], names)
    for _ in range(2):
        with watch(engine) as pool:
            await names["test_orders"](pool)
            async with http(app) as client:
                await client.get("/orders/7")
            with pytest.raises(AssertionError):
                await names["test_orders"](pool)


def test_every_example_is_run() -> None:
    """Protects examples to come."""
    assert 7 == len(BLOCKS)


def test_error_numbers_are_headings() -> None:
    """Who searches for the error finds the section."""
    headings = " ".join(line for line in README.splitlines() if line.startswith("#"))
    for words in ("2006", "2013", "4031", "10054", "server has gone away"):
        assert words in headings
