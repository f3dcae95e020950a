"""Storage of adapters: charged by the hour, also for hours in which nothing ran, once, and the same wherever it is shown."""

import csv
import io
import sqlite3
import time
from contextlib import closing
from datetime import datetime, timezone

import httpx
import pytest

from server import PATIENCE_S

pytestmark = pytest.mark.books

HOUR_MS = 3_600_000
# Dollars per GB-month: the built-in adapters are small.
RATE = 100


def storage_cost(bytes_stored: int) -> int:
    return -(-bytes_stored * RATE * 10**9 // (10**9 * 730))


def long_ago(server, hours: int) -> None:
    """As if adapters had been stored, and prices had held, for hours already."""
    with closing(sqlite3.connect(server.data / "myriad.sqlite")) as database, database:
        database.execute("UPDATE adapter_versions SET created_ms = created_ms - ?", [(hours + 1) * HOUR_MS])
        database.execute("UPDATE prices SET starts_ms = ?", [(int(time.time() * 1000) // HOUR_MS - hours) * HOUR_MS])


def usage(http, by: str) -> list[dict]:
    return http.get("/v1/account/usage", params={"group_by": by, "from": "2020-01-01"}).json()["data"]


def charged(http, hours: int) -> list[dict]:
    """Sums by adapter, once as many hours are charged."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with_storage = [row for row in usage(http, "adapter") if row["storage_byte_hours"]]
        ledger = http.get("/v1/account/ledger", params={"limit": 1000}).json()["data"]
        if len([row for row in ledger if row["kind"] == "charge"]) >= 3 * hours and len(with_storage) == 3:
            return with_storage
        time.sleep(0.05)
    raise AssertionError("storage was not charged")


def test_hours_in_which_nothing_ran_are_charged_once_and_shown_everywhere(own_server):
    server = own_server().start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        price = admin.post("/admin/v1/prices", json={"input": 0, "output": 0, "storage": RATE})
        assert price.json()["storage"] == RATE and http.get("/v1/account/prices").json()["data"][0]["storage"] == RATE
        names = ("extract", "sql", "support")
        sizes = {name: http.get(f"/v1/adapters/local/{name}").json()["bytes"] for name in names}
        assert usage(http, "adapter") == [], "an hour that is not over is not charged"
    server.kill()
    long_ago(server, 3)
    server.start()
    with server.http() as http:
        rows = charged(http, 3)
    server.kill()
    server.start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        time.sleep(0.2)
        again = charged(http, 3)
        # Another hour may have ended since.
        assert [row["adapter"] for row in again] == [row["adapter"] for row in rows] == [f"local/{name}" for name in names]
        hours = {row["storage_byte_hours"] // sizes[row["adapter"].removeprefix("local/")] for row in again}
        assert len(hours) == 1 and (hours := hours.pop()) in (3, 4)
        for row in again:
            size = sizes[row["adapter"].removeprefix("local/")]
            assert (row["storage_byte_hours"], row["requests"]) == (hours * size, 0)
            assert row["cost_nano_usd"] == row["storage_cost_nano_usd"] == hours * storage_cost(size) > 0
        total = hours * sum(storage_cost(size) for size in sizes.values())
        for by in ("", "key", "model", "day", "tag"):
            assert sum(row["cost_nano_usd"] for row in usage(http, by)) == total
        start = {"start_time": int(time.time()) - 2 * 86_400}
        days = http.get("/v1/organization/costs", params=start | {"group_by": "line_item"}).json()["data"]
        costs = [result for day in days for result in day["results"]]
        assert sum(result["amount"]["value_nano_usd"] for result in costs) == total
        assert {result["line_item"] for result in costs} == {f"local/{name}, storage" for name in names}
        assert all(not day["results"] for day in http.get("/v1/organization/usage/completions", params=start).json()["data"])

        month = datetime.now(timezone.utc).strftime("%Y-%m")
        statement = http.get(f"/v1/account/statements/{month}").json()
        assert [line["adapter"] for line in statement["storage"]] == [f"local/{name}" for name in names]
        assert sum(line["amount_nano_usd"] for line in statement["storage"]) == -total == statement["closing_balance_nano_usd"]
        assert all(line["uncharged_byte_hours"] == 0 and line["hours"] == hours for line in statement["storage"])
        sheet = http.get(f"/v1/account/statements/{month}", params={"format": "csv"}).text
        lines = [row for row in csv.DictReader(io.StringIO(sheet)) if row["line"] == "storage"]
        assert sum(int(line["byte_hours"]) for line in lines) == hours * sum(sizes.values())
        key = http.headers["authorization"].removeprefix("Bearer ")
        shown = server.cli("statements", month, "--base-url", server.url, "--api-key", key).stdout
        assert shown.count("\nstorage") == 3 and "local/sql, price 1" in shown
        found = admin.get("/admin/v1/reconciliation?days=1").json()
        assert found["differences"] == 0 and found["compared"] > 0, found
