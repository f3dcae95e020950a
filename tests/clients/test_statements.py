"""Statements: a month of an account adds up, to the nano-dollar, in JSON, as CSV and on the command line."""

import csv
import datetime
import io

import httpx
import pytest

from talk import ask, connect

pytestmark = pytest.mark.books


def this_month() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m")


@pytest.fixture
def shop(own_server, database):
    """A server with prices and a prepaid account whose month has seen one of everything."""
    server = own_server(*database).start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        made = admin.post("/admin/v1/accounts", json={"id": "acme", "credit": "prepaid"}).json()
        assert admin.post("/admin/v1/credits", json={"account": "acme", "amount": 5, "kind": "top_up", "id": "invoice-7",
                                                     "memo": "=paid, by card"}).is_success
        with connect(server, api_key=made["key"]) as client:
            ask(client)
            admin.post("/admin/v1/prices", json={"input": 0.1, "output": 0.4}).raise_for_status()
            charged = [ask(client), ask(client), ask(client, max_tokens=5)]
            admin.post("/admin/v1/prices", json={"input": 0.3, "cached_input": 0.003, "output": 0.7}).raise_for_status()
            charged.append(ask(client, seed=1))
        for nano, kind in ((1_234, "grant"), (7, "refund"), (99, "expire"), (-3, "adjust")):
            credit = {"account": "acme", "amount_nano_usd": nano, "kind": kind}
            admin.post("/admin/v1/credits", json=credit).raise_for_status()
        refused = admin.post("/admin/v1/credits", json={"account": "acme", "amount": 500, "kind": "expire"})
        assert refused.status_code == 409
        with server.http() as own:
            own.headers["authorization"] = f"Bearer {made['key']}"
            yield server, own, admin, sum(reply.usage.cost_nano_usd for reply in charged)


def test_a_month_adds_up_in_every_form(shop):
    server, http, admin, spent = shop
    month = this_month()
    months = http.get("/v1/account/statements").json()
    assert [row["month"] for row in months["data"]] == [month] and not months["has_more"]
    statement = http.get(months["data"][0]["path"]).json()
    assert statement["month"] == month and statement["from"] == f"{month}-01" and statement["final"] is False
    assert [(line["kind"], line["amount_nano_usd"]) for line in statement["credits"]] == [
        ("top_up", 5_000_000_000), ("grant", 1_234), ("refund", 7), ("expire", -99), ("adjust", -3)]
    assert statement["credits"][0]["id"] == "invoice-7" and statement["credits"][0]["memo"] == "=paid, by card"

    charges = {line["price_version"]: line for line in statement["charges"]}
    assert {version: line["requests"] for version, line in charges.items()} == {None: 1, 1: 3, 2: 1}
    assert charges[None]["amount_nano_usd"] == 0 and sum(line["amount_nano_usd"] for line in charges.values()) == -spent < 0
    rows = http.get("/v1/account/requests").json()["data"]
    for field in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        assert sum(line[field] for line in charges.values()) == sum(row[field] for row in rows)

    lines = statement["credits"] + statement["charges"]
    closing = statement["closing_balance_nano_usd"]
    assert statement["opening_balance_nano_usd"] + sum(line["amount_nano_usd"] for line in lines) == closing
    assert closing == http.get("/v1/account").json()["balance_nano_usd"] == 5_000_000_000 + 1_234 + 7 - 99 - 3 - spent

    sheet = http.get(f"/v1/account/statements/{month}", params={"format": "csv"})
    assert sheet.headers["content-type"] == "text/csv; charset=utf-8"
    assert sheet.headers["content-disposition"] == f'attachment; filename="statement-acme-{month}.csv"'
    table = list(csv.DictReader(io.StringIO(sheet.text)))
    assert len(table) == len(lines) + 2
    *parts, last = [int(row["amount_nano_usd"]) for row in table]
    assert sum(parts) == last == closing
    assert table[1]["memo_or_adapter"] == "'=paid, by card", "a spreadsheet would run the memo as a formula"
    key = http.headers["authorization"].removeprefix("Bearer ")
    on_the_command_line = server.cli("statements", month, "--csv", "--base-url", server.url, "--api-key", key)
    assert on_the_command_line.stdout.splitlines() == sheet.text.splitlines()
    shown = server.cli("statements", month, "--base-url", server.url, "--api-key", key).stdout
    assert shown.splitlines()[-2].endswith(f"${closing // 10**9}.{closing % 10**9:09}") and "may still change" in shown
    assert server.cli("statements", "--base-url", server.url, "--api-key", key).stdout == f"{month}\n"


def test_a_month_without_anything_is_empty_and_a_month_to_come_is_refused(shop):
    server, http, admin, _ = shop
    before = http.get("/v1/account/statements/2020-02").json()
    assert before["final"] and before["credits"] == before["charges"] == [] and before["to"] == "2020-02-29"
    assert before["opening_balance_nano_usd"] == before["closing_balance_nano_usd"] == 0
    for month in ("2999-01", "2026-13", "november"):
        refused = http.get(f"/v1/account/statements/{month}")
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "month"
    assert http.get("/v1/account/statements/2020-02", params={"format": "pdf"}).json()["error"]["param"] == "format"
    backwards = http.get("/v1/account/usage", params={"from": "2026-11-20", "to": "2026-11-01"})
    assert backwards.status_code == 400 and backwards.json()["error"]["param"] == "from"
    for misspelt in ("/v1/account/usage?form=2026-11-01", "/v1/account/requests?limits=1", "/v1/account/statements/2020-02?fromat=csv"):
        assert http.get(misspelt).status_code == 400, misspelt
    assert admin.get("/admin/v1/reconciliation?day=1").status_code == 400
    scoped = http.post("/v1/account/keys", json={"scopes": ["inference"]}).json()["key"]
    refused = http.get("/v1/account/statements", headers={"authorization": f"Bearer {scoped}"})
    assert refused.status_code == 403
