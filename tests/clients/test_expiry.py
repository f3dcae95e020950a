"""Grants that expire: what is spent comes from them first, and what is left goes at its time, also when nothing ran then."""

import time

import httpx
import pytest

from server import PATIENCE_S
from talk import ask, connect

pytestmark = pytest.mark.books


def test_what_is_left_of_a_grant_goes_at_its_time(own_server):
    server = own_server().start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        admin.post("/admin/v1/prices", json={"input": 1, "output": 1}).raise_for_status()
        key = admin.post("/admin/v1/accounts", json={"id": "acme", "credit": "prepaid"}).json()["key"]
        def credit(**fields):
            return admin.post("/admin/v1/credits", json={"account": "acme"} | fields)

        for wrong in ({"expires_at": 1}, {"expires_at": 4_000_000_000, "kind": "top_up"}, {"expires_at": "soon"}):
            refused = credit(amount=1, **wrong)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "expires_at"
        assert credit(amount=5, kind="top_up").is_success
        operator = ("--ops-url", server.ops_url, "--base-url", server.url, "--api-key", http.headers["authorization"].removeprefix("Bearer "))
        given = server.cli("accounts", "credit", "acme", "2", "--id", "later", "--expires-at", "2099-12-31", *operator)
        assert given.returncode == 0, given.stderr
        soon = int(time.time()) + 3
        for _ in range(2):
            assert credit(amount=1, id="gift", expires_at=soon, memo="to try it").is_success
        assert credit(amount=1, id="gift", expires_at=soon + 1).status_code == 409, "another time under the same id"
        with connect(server, api_key=key) as client:
            spent = ask(client).usage.cost_nano_usd
        shown = httpx.get(f"{server.url}/v1/account", headers={"authorization": f"Bearer {key}"}).json()
        left = {one["id"]: one["amount_nano_usd"] for one in shown["expiring"]}
        assert list(left) == ["gift", "later"] and left == {"gift": 10**9 - spent, "later": 2 * 10**9}
    assert server.stop() == 0, server.output
    time.sleep(max(0.0, soon - time.time()))
    server.start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        deadline = time.monotonic() + PATIENCE_S
        while len((account := admin.get("/admin/v1/accounts/acme").json())["expiring"]) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [one["id"] for one in account["expiring"]] == ["later"]
        own = {"authorization": f"Bearer {key}"}
        ledger = httpx.get(f"{server.url}/v1/account/ledger?limit=100", headers=own).json()["data"]
        expired = [row for row in ledger if row["kind"] == "expire"]
        assert sum(row["amount_nano_usd"] for row in expired) == 10**9 - spent and {row["memo"] for row in expired} == {"of gift"}
        assert account["balance_nano_usd"] == 7 * 10**9, "what was spent came from the gift"
        log = admin.get("/admin/v1/audit", params={"account": "acme"}).json()["data"]
        noted = [row for row in log if row["action"] == "account.credit_expired"]
        assert len(noted) == len(expired) and noted[0]["actor"] == {"account": None, "key": None}
        gift = {"account": "acme", "amount": 1, "id": "gift", "expires_at": soon}
        again = admin.post("/admin/v1/credits", json=gift)
        assert again.status_code == 200 and again.json()["transaction"]["repeated"], again.text
        assert again.json()["balance_nano_usd"] == 7 * 10**9, "a repeat after its time gave it again"
        assert admin.get("/admin/v1/reconciliation?days=1").json()["differences"] == 0
