"""The audit log: who changed what, for the account it concerns and for the operator, and without any secret."""

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import pytest

import lora
from server import KEY

pytestmark = pytest.mark.books


@pytest.fixture
def shop(own_server, database):
    server = own_server(*database).start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        yield server, http, admin


def everything(client, path, **params):
    """All rows of a list, page by page."""
    rows = []
    while True:
        after = {"after": rows[-1]["id"]} if rows else {}
        page = client.get(path, params={"limit": 100} | params | after).raise_for_status().json()
        rows += page["data"]
        if not page["has_more"]:
            return rows


def test_every_change_leaves_a_row_with_who_made_it(shop):
    server, http, admin = shop
    operator_key = http.get("/v1/account/keys").json()["data"][0]["id"]
    made = admin.post("/admin/v1/accounts", json={"id": "acme", "credit": "prepaid"}).json()
    own = httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {made['key']}"})
    own_key = own.get("/v1/account/keys").json()["data"][0]["id"]
    admin.post("/admin/v1/credits", json={"account": "acme", "amount": 1, "id": "invoice-7", "memo": "paid"}).raise_for_status()
    assert admin.post("/admin/v1/credits", json={"account": "acme", "amount": 9, "kind": "expire", "id": "too-much"}).status_code == 409
    admin.patch("/admin/v1/accounts/acme", json={"credit": "unlimited"}).raise_for_status()
    admin.post("/admin/v1/prices", json={"input": 1, "output": 2, "account": "acme"}).raise_for_status()
    admin.post("/admin/v1/prices", json={"input": 1, "output": 2}).raise_for_status()
    by_operator = admin.post("/admin/v1/accounts/acme/keys", json={"name": "spare"}).json()
    admin.delete(f"/admin/v1/accounts/acme/keys/{by_operator['id']}").raise_for_status()
    own.put("/v1/account/members/ann", json={"role": "owner"}).raise_for_status()
    laptop = own.post("/v1/account/keys", json={"name": "laptop", "scopes": ["inference"], "member": "ann"}).json()
    own.delete("/v1/account/members/ann").raise_for_status()
    assert own.delete("/v1/account/keys/key-none").status_code == 404, "what changed nothing leaves no row"

    rows = own.get("/v1/account/audit", params={"limit": 100}).json()["data"][::-1]
    operator, self = {"account": "local", "key": operator_key}, {"account": "acme", "key": own_key}
    assert [(row["action"], row["subject"], row["actor"]) for row in rows] == [
        ("account.created", "acme", operator),
        ("key.created", own_key, operator),
        ("account.credit", "invoice-7", operator),
        ("account.credit", "too-much", operator),
        ("account.credit_kind", "acme", operator),
        ("price.added", "1", operator),
        ("key.created", by_operator["id"], operator),
        ("key.revoked", by_operator["id"], operator),
        ("member.set", "ann", self),
        ("key.created", laptop["id"], self),
        ("member.removed", "ann", self),
    ]
    assert {row["account"] for row in rows} == {"acme"}
    assert rows[2]["detail"] == {"kind": "grant", "amount_nano_usd": 10**9, "memo": "paid", "outcome": "done"}
    assert rows[3]["detail"]["outcome"] == "insufficient_credit" and rows[4]["detail"] == {"credit": "unlimited"}
    assert rows[9]["detail"]["scopes"] == ["inference"] and rows[9]["detail"]["member"] == "ann"
    assert rows[10]["detail"] == {"keys_revoked": 1}

    # The operator sees all accounts, page by page or one of them.
    log = everything(admin, "/admin/v1/audit", limit=4)
    assert len({row["id"] for row in log}) == len(log)
    assert [row for row in log if row["account"] == "acme"][::-1] == rows
    # The server's own first steps, and the price for everyone.
    assert [row["action"] for row in log if row["account"] == "local"][::-1] == [
        "account.created", "key.created", "adapter.pushed", "adapter.pushed", "adapter.pushed", "price.added"]
    assert log[-1]["actor"] == {"account": None, "key": None}
    assert len(admin.get("/admin/v1/audit", params={"account": "acme", "limit": 100}).json()["data"]) == len(rows)

    written = json.dumps(log)
    for secret in (KEY, made["key"], by_operator["key"], laptop["key"]):
        assert secret not in written and secret[10:20] not in written, "a key is in the log"


def test_a_change_is_written_down_with_what_it_changes_also_when_the_server_is_killed(shop):
    server, http, admin = shop
    kills, ended = 12, threading.Event()

    def credit(client, id, **fields):
        return client.post(f"{server.ops_url}/admin/v1/credits", json={"account": "local", "amount": 0.5, "id": id, **fields})

    def price(client, _):
        return client.post(f"{server.ops_url}/admin/v1/prices", json={"input": 1, "output": 2})

    def come_and_go(path, **fields):
        def change(client, _):
            made = client.post(f"{server.url}{path}", json=fields)
            return client.delete(f"{server.url}{path}/{made.json()['id']}") if made.is_success else made
        return change

    def insist(name, change):
        """One change after the other; what was on its way when the server was killed is asked for again."""
        with httpx.Client(headers=http.headers, timeout=30) as client:
            for number in count():
                while not ended.is_set():
                    try:
                        answer = change(client, f"{name}-{number}")
                    except httpx.TransportError:
                        time.sleep(0.01)
                        continue
                    if answer.status_code < 500:
                        answer.raise_for_status()
                        break
                if ended.is_set():
                    return

    def alias(client, id):
        return client.put(f"{server.url}/v1/adapters/local/sql/aliases/{id}", json={"version": 1})

    changes = {
        "alias": alias, "grant": credit, "invoice": lambda client, id: credit(client, id, kind="top_up"),
        "gift": lambda client, id: credit(client, id, expires_at=4_000_000_000), "price": price,
        "limit": come_and_go("/v1/account/limits", kind="alert", period="day", amount=1),
        "webhook": come_and_go("/v1/account/webhooks", url="https://example.com/hook"),
    }
    with ThreadPoolExecutor(len(changes)) as pool:
        clients = [pool.submit(insist, *change) for change in changes.items()]
        try:
            for _ in range(kills):
                time.sleep(random.uniform(0.1, 0.3))
                server.kill()
                server.start()
        finally:
            ended.set()
        [client.result() for client in clients]

    log = {}
    for row in everything(admin, "/admin/v1/audit"):
        log.setdefault(row["action"], []).append(row["subject"])
    aliases = [row["alias"] for row in http.get("/v1/adapters/local/sql").json()["aliases"]]
    there = {
        "account.credit": [row["id"] for row in everything(http, "/v1/account/ledger")],
        "adapter.alias_set": [f"local/sql@{alias}" for alias in aliases if alias != "default"],
        "price.added": [str(row["version"]) for row in admin.get("/admin/v1/prices").json()["data"]],
    }
    for action, done in there.items():
        assert len(done) > kills and sorted(log[action]) == sorted(done), (action, set(done) ^ set(log[action]))
    for what in ("limit", "webhook"):
        added, removed = ("set" if what == "limit" else "added"), log[f"{what}.removed"]
        left = [row["id"] for row in http.get(f"/v1/account/{what}s").json()["data"]]
        assert len(removed) > kills and sorted(log[f"{what}.{added}"]) == sorted(removed + left), what


def test_who_may_read_it(shop):
    server, http, admin = shop
    key = admin.post("/admin/v1/accounts", json={"id": "acme"}).json()["key"]
    headers = {"authorization": f"Bearer {key}"}
    assert httpx.get(f"{server.ops_url}/admin/v1/audit", headers=headers).status_code == 403
    assert httpx.get(f"{server.url}/admin/v1/audit", headers=headers).status_code == 404
    billing = httpx.post(f"{server.url}/v1/account/keys", headers=headers, json={"scopes": ["billing", "inference"]}).json()["key"]
    assert httpx.get(f"{server.url}/v1/account/audit", headers={"authorization": f"Bearer {billing}"}).status_code == 403
    # Another account's rows cannot be asked for, nor paged from.
    others = httpx.get(f"{server.url}/v1/account/audit", headers=headers, params={"account": "local"}).json()["data"]
    assert {row["account"] for row in others} == {"acme"}
    # An empty page would say that this was all.
    theirs = admin.get("/admin/v1/audit", params={"account": "local"}).json()["data"][0]["id"]
    for after in (theirs, "audit-none", ""):
        refused = httpx.get(f"{server.url}/v1/account/audit", headers=headers, params={"after": after})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "after", after
    assert admin.get("/admin/v1/audit", params={"after": "audit-none"}).status_code == 400
    assert admin.get("/admin/v1/audit", params={"after": theirs}).is_success
    assert httpx.get(f"{server.url}/v1/account/audit", headers=headers, params={"limit": 0}).json()["error"]["param"] == "limit"
    assert admin.get("/admin/v1/audit", params={"account": "No Name"}).json()["error"]["param"] == "account"


def test_limits_webhooks_and_customers_are_written_down_too(shop):
    server, http, admin = shop
    cap = http.post("/v1/account/limits", json={"period": "day", "amount": 1}).json()["id"]
    operators = admin.post("/admin/v1/accounts/local/limits", json={"period": "day", "amount": 2}).json()["id"]
    assert http.delete(f"/v1/account/limits/{operators}").status_code == 404
    http.delete(f"/v1/account/limits/{cap}").raise_for_status()
    admin.delete(f"/admin/v1/accounts/local/limits/{operators}").raise_for_status()
    webhook = http.post("/v1/account/webhooks", json={"url": "https://example.com/hook?token=hidden"}).json()
    http.delete(f"/v1/account/webhooks/{webhook['id']}").raise_for_status()
    admin.patch("/admin/v1/accounts/local", json={"stripe_customer": "cus_1"}).raise_for_status()
    rows = http.get("/v1/account/audit", params={"limit": 100}).json()["data"][::-1][5:]
    assert [(row["action"], row["subject"]) for row in rows] == [
        ("limit.set", cap), ("limit.set", operators), ("limit.removed", cap), ("limit.removed", operators),
        ("webhook.added", webhook["id"]), ("webhook.removed", webhook["id"]), ("account.stripe_customer", "local"),
    ]
    assert rows[0]["detail"]["amount_nano_usd"] == 10**9 and rows[1]["detail"]["set_by"] == "operator"
    written = json.dumps(rows)
    assert "hidden" not in written and webhook["secret"] not in written


def test_what_happens_to_adapters_is_written_down_too(shop):
    server, http, admin = shop

    def rows():
        page = http.get("/v1/account/audit", params={"limit": 100}).raise_for_status().json()["data"][::-1]
        return [(row["action"], row["subject"], row["actor"]["account"]) for row in page if row["action"].startswith("adapter.")]

    before = rows()
    assert before == [("adapter.pushed", f"local/{name}@1", None) for name in ("extract", "sql", "support")], "the server's own"
    for seed in (1, 2):
        http.put("/v1/adapters/local/mine", files=lora.parts(lora.adapter(seed))).raise_for_status()
    # The same again is no change.
    http.put("/v1/adapters/local/mine", files=lora.parts(lora.adapter(2))).raise_for_status()
    http.put("/v1/adapters/local/mine/aliases/prod", json={"version": 1}).raise_for_status()
    http.delete("/v1/adapters/local/mine/aliases/prod").raise_for_status()
    http.delete("/v1/adapters/local/mine/versions/1").raise_for_status()
    http.delete("/v1/adapters/local/mine").raise_for_status()
    assert http.delete("/v1/adapters/local/mine").status_code == 404
    assert rows() == before + [(action, f"local/mine{version}", "local") for action, version in (
        ("adapter.pushed", "@1"), ("adapter.pushed", "@2"), ("adapter.alias_set", "@prod"), ("adapter.alias_removed", "@prod"),
        ("adapter.version_deleted", "@1"), ("adapter.deleted", ""))]
    server.kill()
    server.start()
    assert len(rows()) == len(before) + 6, "a start that changes nothing leaves no row"
