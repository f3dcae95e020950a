"""Alerts: an account's webhooks are told once when its spending reaches them, whatever fails in between."""

import threading
import time
from datetime import datetime, timezone

import httpx
import pytest

from receiver import Receiver, eventually, verified
from server import free_port
from talk import ask, connect

pytestmark = [pytest.mark.books, pytest.mark.waits]

TOKEN = 4_000


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.stop()


def priced(server):
    with server.http() as http:
        prices = {"input": 1.0, "output": TOKEN / 1_000}
        httpx.post(f"{server.ops_url}/admin/v1/prices", headers=http.headers, json=prices).raise_for_status()
    return server


@pytest.fixture
def shop(own_server, database):
    """A server with prices that delivers to this machine."""
    return priced(own_server("--private-webhooks", *database).start())


def webhook(http, url: str) -> dict:
    made = http.post("/v1/account/webhooks", json={"url": url})
    assert made.status_code == 201, made.text
    return made.json()


def alert(http, amount: int, **fields) -> dict:
    limit = {"kind": "alert", "period": "day", "amount_nano_usd": amount} | fields
    made = http.post("/v1/account/limits", json=limit)
    assert made.status_code == 201, made.text
    return made.json()


def spend(server, tokens: int = 20) -> None:
    with connect(server) as client:
        ask(client, max_tokens=tokens)


def deliveries(http, made: dict) -> list[dict]:
    return http.get(f"/v1/account/webhooks/{made['id']}/deliveries").raise_for_status().json()["data"]


def test_an_alert_reaches_every_webhook_once_and_signed(shop, receiver):
    with shop.http() as http:
        first, second = webhook(http, f"{receiver.url}/first"), webhook(http, f"{receiver.url}/second?team=a")
        assert first["secret"] != second["secret"] and first["secret"].startswith("whsec_")
        shown = http.get("/v1/account/webhooks").json()["data"]
        assert [row["url"] for row in shown] == [first["url"], second["url"]] and all("secret" not in row for row in shown)
        limit = alert(http, 10 * TOKEN)
        far = alert(http, 10**15, period="month")
        assert [row["reached"] for row in http.get("/v1/account/limits").json()["data"]] == [False, False]
        spend(shop, 20)
        messages = receiver.wait(2)
        secrets = {"/first": first["secret"], "/second?team=a": second["secret"]}
        for message in messages:
            told = verified(secrets[message.path], message)
            assert told["type"] == "limit.reached"
            assert datetime.fromisoformat(told["timestamp"]).tzinfo is not None
            data = told["data"]
            assert data["account"] == "local" and data["limit"] == limit
            assert data["spent_nano_usd"] >= data["limit"]["amount_nano_usd"] == 10 * TOKEN
            today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
            assert data["period_start"] == f"{today}T00:00:00Z"
        assert {message.path for message in messages} == set(secrets)
        rows = http.get("/v1/account/limits").json()["data"]
        assert {row["id"]: row["reached"] for row in rows} == {limit["id"]: True, far["id"]: False}
        [row] = eventually(lambda: [row for row in deliveries(http, first) if row["status"] == "delivered"], "a delivery")
        assert (row["attempts"], row["failure"]) == (1, None) and row["id"] in {m.headers["webhook-id"] for m in messages}
        # Once in the period: what is reached later is told, what was told is not told again.
        spend(shop, 20)
        later = alert(http, 1, period="total")
        told = [message.json["data"]["limit"]["id"] for message in receiver.wait(4)]
        assert sorted(told) == sorted([limit["id"], limit["id"], later["id"], later["id"]])


def test_a_failure_is_shown_and_what_failed_is_sent_again(shop, receiver):
    answers = iter([500, 302])
    receiver.answer = lambda message: next(answers, 200)
    port = free_port()
    with shop.http() as http:
        failing, refused = webhook(http, receiver.url), webhook(http, f"http://127.0.0.1:{port}")
        alert(http, 1)
        spend(shop)
        receiver.wait(1)
        [row] = eventually(lambda: [row for row in deliveries(http, failing) if row["failure"]], "a failure")
        assert row["status"] == "due" and "500" in row["failure"] and row["next_at"]
        [row] = eventually(lambda: [row for row in deliveries(http, refused) if row["failure"]], "a failure")
        assert "refused" in row["failure"]
        late = Receiver(port=port)
        verified(refused["secret"], late.wait(1)[0])
        messages = receiver.wait(3)
        late.stop()
        assert len({message.headers["webhook-id"] for message in messages}) == 1, "a repeat has another id"
        [verified(failing["secret"], message) for message in messages]
        assert all(message.path == "/" for message in messages), "a redirect was followed"
        for made, attempts in ((failing, 3), (refused, None)):
            [row] = eventually(lambda: [row for row in deliveries(http, made) if row["status"] == "delivered"], "a delivery")
            assert row["failure"] is None and row["attempts"] == (attempts or row["attempts"])


def test_a_removed_webhook_gets_nothing_more(shop, receiver):
    receiver.answer = lambda message: 500
    with shop.http() as http:
        made = webhook(http, receiver.url)
        alert(http, 1)
        spend(shop)
        receiver.wait(1)
        assert http.delete(f"/v1/account/webhooks/{made['id']}").status_code == 200
        assert http.delete(f"/v1/account/webhooks/{made['id']}").status_code == 404
        assert http.get(f"/v1/account/webhooks/{made['id']}/deliveries").status_code == 404
        before = len(receiver.messages)
        barrier = webhook(http, f"{receiver.url}/barrier")
        eventually(lambda: [m for m in receiver.messages if m.path == "/barrier"], "messages to the other one")
        # It fails later than the removed one did, and is repeated after the same pause.
        eventually(lambda: deliveries(http, barrier)[0]["attempts"] >= 2, "a repeat to the other one")
        assert len([m for m in receiver.messages if m.path == "/"]) <= before + 1


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_two_servers_tell_each_alert_once(own_server, receiver, database):
    servers = [priced(own_server("--private-webhooks", *database).start()) for _ in range(2)]
    with servers[0].http() as http:
        made = webhook(http, receiver.url)
        limits = [alert(http, amount * TOKEN, period="total") for amount in range(1, 13)]
        threads = [threading.Thread(target=spend, args=(server,)) for server in servers for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        messages = receiver.wait(len(limits))
        eventually(lambda: all(row["status"] == "delivered" for row in deliveries(http, made)), "deliveries")
        time.sleep(3)  # Longer than either server takes to look again.
    told = sorted(verified(made["secret"], message)["data"]["limit"]["id"] for message in messages)
    assert told == sorted(limit["id"] for limit in limits)


def test_what_a_killed_server_was_sending_is_sent_again(own_server, receiver):
    server = priced(own_server("--private-webhooks").start())
    hold = threading.Event()
    receiver.answer = lambda message: hold.wait() and None
    with server.http() as http:
        made = webhook(http, receiver.url)
        alert(http, 1)
        spend(server)
        receiver.wait(1)
        server.kill()
        receiver.answer = lambda message: 200
        hold.set()
        server.start()
        first, again = receiver.wait(2)
        assert first.headers["webhook-id"] == again.headers["webhook-id"]
        verified(made["secret"], again)
        eventually(lambda: deliveries(http, made)[0]["status"] == "delivered", "a delivery")
        assert len(receiver.messages) == 2


def test_private_addresses_are_not_delivered_to(own_server, receiver):
    server = priced(own_server().start())
    with server.http() as http:
        refused = http.post("/v1/account/webhooks", json={"url": receiver.url})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "url" and "https://" in refused.text
        for url in ("https://me:secret@example.com", "nonsense", 7, None):
            assert http.post("/v1/account/webhooks", json={"url": url}).json()["error"]["param"] == "url"
        hosts = ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.1.2.3"]
        made = [webhook(http, f"https://{host}:{receiver.port}/") for host in hosts]
        alert(http, 1)
        spend(server)
        for one in made:
            [row] = eventually(lambda: [row for row in deliveries(http, one) if row["failure"]], "a failure")
            assert "--private-webhooks" in row["failure"] and row["status"] == "due"
    assert receiver.connections == 0


def test_webhooks_are_the_accounts_own_and_for_admins(shop, receiver):
    with shop.http() as http:
        made = webhook(http, receiver.url)
        key = http.post("/v1/account/keys", json={"name": "money", "scopes": ["billing"]}).json()["key"]
        other = httpx.post(f"{shop.ops_url}/admin/v1/accounts", headers=http.headers, json={"id": "acme"}).json()["key"]
        for method, path in (("GET", ""), ("POST", ""), ("DELETE", f"/{made['id']}"), ("GET", f"/{made['id']}/deliveries")):
            headers = {"authorization": f"Bearer {key}"}
            assert http.request(method, f"/v1/account/webhooks{path}", headers=headers).status_code == 403
        http.headers["authorization"] = f"Bearer {other}"
        assert http.get("/v1/account/webhooks").json()["data"] == []
        assert http.delete(f"/v1/account/webhooks/{made['id']}").status_code == 404
        assert http.get(f"/v1/account/webhooks/{made['id']}/deliveries").status_code == 404
        [webhook(http, f"{receiver.url}/{number}") for number in range(20)]
        assert "at most 20" in http.post("/v1/account/webhooks", json={"url": receiver.url}).json()["error"]["message"]


def test_the_command_line_sets_limits_and_webhooks(own_server, receiver):
    server = own_server("--private-webhooks", key=None).start()

    def printed(*arguments: str) -> str:
        done = server.cli(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "no limits" in printed("limits") and "no webhooks" in printed("webhooks")
    assert "webhooks add" in printed("limits", "set", "0", "--per", "day", "--alert")
    identifier, secret, _ = printed("webhooks", "add", receiver.url).splitlines()
    verified(secret, receiver.wait(1)[0])
    printed("limits", "set", "12.5", "--adapter", "local/support")
    table = printed("limits", "list")
    assert "adapter local/support" in table and "$12.5" in table and table.count("reached") == 1
    assert receiver.url in printed("webhooks")
    eventually(lambda: "delivered" in printed("webhooks", "deliveries", identifier), "a delivery")
    assert "removed" in printed("webhooks", "remove", identifier)
    assert "removed" in printed("limits", "remove", table.splitlines()[1].split()[0])
    wrong = server.cli("webhooks", "remove", identifier)
    assert wrong.returncode != 0 and "no such webhook" in wrong.stderr
