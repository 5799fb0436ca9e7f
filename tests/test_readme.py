"""The README's own code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client import REGISTRY

from poolwatch.watch import watches

if TYPE_CHECKING:
    from poolwatch.demo.servers import MariaDB

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.anyio
async def test_examples(mariadb: MariaDB, capsys: pytest.CaptureFixture[str]) -> None:
    """The examples do what the text around them says, on a real database, as they stand."""
    first, guard, second = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(first.replace("mysql+aiomysql://app:app@127.0.0.1/app", mariadb.url()), names)  # noqa: S102
    async with httpx.AsyncClient(transport=httpx.ASGITransport(names["app"]), base_url="http://test") as http:
        assert 'sqlalchemy_pool_connections{pool="app",state="idle"} 0.0' in (await http.get("/metrics")).text
        exec(guard, names)  # noqa: S102
        assert re.search(r'sqlalchemy_pool_info{.*guard="true"', (await http.get("/metrics")).text)
    for each in watches(REGISTRY):
        each.close()
    exec(second, names)  # noqa: S102
    async with names["lifespan"](names["app"]), names["engine"].connect():
        transport = httpx.ASGITransport(names["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            text = (await http.get("/internal/metrics")).text
    assert 'sqlalchemy_pool_connections{pool="orders",state="checked_out"} 1.0' in text
    assert 'sqlalchemy_pool_inactivity_limit_seconds{pool="orders",source="configured"} 350.0' in text
    assert "'idle': 1" in capsys.readouterr().out
    await names["engine"].dispose()


def test_error_numbers_are_headings() -> None:
    """Who searches for the error finds the section."""
    headings = " ".join(line for line in README.splitlines() if line.startswith("#"))
    for words in ("2006", "2013", "4031", "10054", "server has gone away"):
        assert words in headings
