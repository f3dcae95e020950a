"""Rating again: a wrong price that was in force is put right by corrections, once, and everything still adds up."""

import csv
import io
import time
from datetime import datetime, timezone

import httpx
import pytest

from talk import ask, connect

pytestmark = pytest.mark.books


@pytest.fixture
def shop(own_server, database):
    """A server whose accounts, one of them prepaid with a cent, were asked at a price that was too low."""
    server = own_server(*database).start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        admin.post("/admin/v1/prices", json={"input": 1, "output": 1}).raise_for_status()
        key = admin.post("/admin/v1/accounts", json={"id": "acme", "credit": "prepaid"}).json()["key"]
        admin.post("/admin/v1/credits", json={"account": "acme", "amount": 0.001}).raise_for_status()
        tokens = {}
        for account, options in (("acme", {"api_key": key}), ("local", {})):
            with connect(server, **options) as client:
                tokens[account] = sum(ask(client, seed=seed).usage.total_tokens for seed in range(3))
        # Cached prompt tokens cost the same here.
        admin.post("/admin/v1/prices", json={"input": 11, "output": 11}).raise_for_status()
        yield server, http, admin, key, tokens


def test_a_dry_run_shows_and_apply_posts_once(shop):
    server, http, admin, key, tokens = shop
    asked = {"version": 2, "from": int(time.time()) - 3600, "to": int(time.time()) + 3600, "instead_of": 1}

    def rerate(**fields):
        answer = admin.post("/admin/v1/prices/rerate", json=asked | fields).raise_for_status().json()
        return {row["account"]: row for row in answer["data"]}

    planned = rerate()
    assert {name: (row["before_nano_usd"], row["difference_nano_usd"]) for name, row in planned.items()} == {
        name: (count * 1_000, count * 10_000) for name, count in tokens.items()}
    outcomes = {name: (row["requests"], row["posted_nano_usd"], row["outcome"]) for name, row in planned.items()}
    assert outcomes == {"acme": (3, 0, "insufficient_credit"), "local": (3, 0, "planned")}
    before = http.get("/v1/account").json()["balance_nano_usd"]
    shown = server.cli("prices", "rerate", "--version", "2", "--from", "2020-01-01", "--to", "2099-12-31T23:59:59Z", "--ops-url",
                       server.ops_url, "--base-url", server.url, "--api-key", http.headers["authorization"].removeprefix("Bearer "))
    assert "--apply" in shown.stdout and "insufficient_credit" in shown.stdout, shown.stderr
    assert http.get("/v1/account").json()["balance_nano_usd"] == before, "a dry run changes nothing"

    applied = rerate(apply=True)
    assert (applied["acme"]["outcome"], applied["local"]["outcome"]) == ("insufficient_credit", "posted")
    assert http.get("/v1/account").json()["balance_nano_usd"] == before - tokens["local"] * 10_000
    assert list(rerate(apply=True)) == ["acme"], "a repeat posts nothing more"
    admin.post("/admin/v1/credits", json={"account": "acme", "amount": 1, "kind": "top_up"}).raise_for_status()
    assert rerate(apply=True, account="acme")["acme"]["posted_nano_usd"] == tokens["acme"] * 10_000
    assert rerate(apply=True) == {}

    month = datetime.now(timezone.utc).strftime("%Y-%m")
    statement = http.get(f"/v1/account/statements/{month}").json()
    assert [(line["price_version"], line["requests"], line["amount_nano_usd"]) for line in statement["corrections"]] == [
        (2, 3, -10_000 * tokens["local"])]
    lines = [line for kind in ("credits", "charges", "storage", "corrections") for line in statement[kind]]
    assert statement["opening_balance_nano_usd"] + sum(line["amount_nano_usd"] for line in lines) == statement["closing_balance_nano_usd"]
    sheet = http.get(f"/v1/account/statements/{month}", params={"format": "csv"}).text
    *parts, last = [int(row["amount_nano_usd"]) for row in csv.DictReader(io.StringIO(sheet))]
    assert sum(parts) == last and "correction" in sheet
    assert all(row["price_version"] == 1 for row in http.get("/v1/account/requests").json()["data"]), "rows stay"
    found = admin.get("/admin/v1/reconciliation?days=1").json()
    assert found["differences"] == 0 and found["compared"] > 0, found
    log = admin.get("/admin/v1/audit", params={"account": "local"}).json()["data"]
    rerated = [row for row in log if row["action"] == "price.rerated"]
    assert len(rerated) == 1 and rerated[0]["detail"]["posted_nano_usd"] == tokens["local"] * 10_000

    good = {"version": 2, "from": 1, "to": 2}
    for wrong, param in (({"version": 9}, "version"), ({"version": None}, "version"), ({"from": None}, "from"), ({"to": 1}, "to"),
                         ({"account": "nobody"}, "account"), ({"model": "a@1"}, "model"), ({"apply": 1}, "apply")):
        refused = admin.post("/admin/v1/prices/rerate", json=good | wrong)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param, wrong
    assert http.post("/admin/v1/prices/rerate", json=good).status_code == 404
