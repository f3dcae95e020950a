"""Credit: prepaid accounts spend what they have, to the nano-dollar, and nothing beyond."""

import socket
import sqlite3
import threading
import time

import httpx
import pytest
from openai import APIStatusError

from server import PATIENCE_S, postgres_database
from talk import connect

pytestmark = pytest.mark.books

# Dollars per million tokens, so that a token is a round number of nano-dollars.
INPUT, OUTPUT = 1.0, 4.0
TOKEN = 4_000
PATIENT = {"model": "myriad-mini", "messages": [{"role": "user", "content": "Say every word you know."}], "extra_body": {"ignore_eos": True}}


@pytest.fixture
def shop(own_server, database):
    """A server with prices and a prepaid account that has nothing yet."""
    server = own_server(*database).start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        admin.post("/admin/v1/prices", json={"input": INPUT, "output": OUTPUT}).raise_for_status()
        made = admin.post("/admin/v1/accounts", json={"id": "acme", "credit": "prepaid"})
        assert made.status_code == 201 and made.json()["balance_nano_usd"] == 0
        yield server, admin, made.json()["key"]


@pytest.fixture
def shops(own_server):
    """The same, on two servers that share a PostgreSQL database."""
    arguments = ("--database", postgres_database())
    first, second = own_server(*arguments).start(), own_server(*arguments).start()
    with first.http() as http, httpx.Client(base_url=first.ops_url, headers=http.headers) as admin:
        admin.post("/admin/v1/prices", json={"input": INPUT, "output": OUTPUT}).raise_for_status()
        key = admin.post("/admin/v1/accounts", json={"id": "acme", "credit": "prepaid"}).raise_for_status().json()["key"]
        wait_until(lambda: all(knows(server, key) for server in (first, second)))
        yield first, second, admin, key


def knows(server, key):
    """Whether a server has heard of the key and of the prices."""
    headers = {"authorization": f"Bearer {key}"}
    prices = httpx.get(f"{server.url}/v1/account/prices", headers=headers)
    return prices.status_code == 200 and prices.json()["data"]


def wait_until(true):
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def share_what_a_large_request_left(first, second, key):
    """A request that may take nearly all of what there is for 2000 tokens ends early on the first server, which goes on with small
    ones, so that its account is never quiet. The second server gets what the first does not use."""
    hello = {"model": "myriad-mini", "messages": [{"role": "user", "content": "Hello!"}]}
    ended = threading.Event()
    refused = []

    def small():
        with connect(first, api_key=key) as client:
            while not ended.wait(0.1):
                try:
                    client.chat.completions.create(**hello, max_tokens=5)
                except APIStatusError as error:
                    refused.append(error)

    with connect(first, api_key=key) as client, connect(second, api_key=key) as other:
        large = client.chat.completions.create(**hello, max_tokens=1985)
        assert large.choices[0].finish_reason == "stop" and large.usage.completion_tokens < 100
        busy = threading.Thread(target=small)
        busy.start()
        try:
            for _ in range(10):
                assert other.chat.completions.create(**hello, max_tokens=400).usage.completion_tokens < 100
        finally:
            ended.set()
            busy.join()
    assert refused == []


def credit(admin, nano, **fields):
    return admin.post("/admin/v1/credits", json={"account": "acme", "amount_nano_usd": nano} | fields)


def account(server, key):
    return httpx.get(f"{server.url}/v1/account", headers={"authorization": f"Bearer {key}"}).json()


def ledger(server, key):
    return httpx.get(f"{server.url}/v1/account/ledger?limit=1000", headers={"authorization": f"Bearer {key}"}).json()["data"]


def test_without_credit_a_request_is_refused_and_leaves_no_row(shop):
    server, admin, key = shop
    with connect(server, api_key=key) as client:
        with pytest.raises(APIStatusError) as refused:
            client.chat.completions.create(**PATIENT)
    assert refused.value.status_code == 402 and refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    rows = httpx.get(f"{server.url}/v1/account/requests", headers={"authorization": f"Bearer {key}"}).json()["data"]
    assert rows == [] and ledger(server, key) == []


def test_an_answer_ends_where_the_credit_does(shop):
    server, admin, key = shop
    assert credit(admin, 1_000_000).status_code == 200
    with connect(server, api_key=key) as client:
        for stream in (False, True):
            before = account(server, key)["balance_nano_usd"]
            if stream:
                *_, end, last = client.chat.completions.create(**PATIENT, stream=True, stream_options={"include_usage": True})
                choice, usage = end.choices[0], last.usage
            else:
                reply = client.chat.completions.create(**PATIENT)
                choice, usage = reply.choices[0], reply.usage
            # The prompt and as many tokens as there was money for: what is left buys no further one.
            assert choice.finish_reason == "length" and choice.stop_reason == "insufficient_quota"
            after = account(server, key)["balance_nano_usd"]
            assert before - after == usage.cost_nano_usd and 0 <= after < TOKEN
            assert usage.completion_tokens > 128, "one slice was not renewed"
            with pytest.raises(APIStatusError, match="out of credit"):
                client.chat.completions.create(**PATIENT)
            assert credit(admin, 900_000).status_code == 200
        # A length that was asked for is there in full or not at all.
        with pytest.raises(APIStatusError, match="lower max_tokens"):
            client.chat.completions.create(**PATIENT, max_tokens=400)
        assert client.chat.completions.create(**PATIENT, max_tokens=100).choices[0].finish_reason == "length"
    with server.http() as http:
        http.headers["authorization"] = f"Bearer {key}"
        rows = http.get("/v1/account/requests").json()["data"]
    assert [row["finish"] for row in rows] == ["length", "credit", "credit"]
    spent = sum(row["cost_nano_usd"] for row in rows)
    assert account(server, key)["balance_nano_usd"] == 1_000_000 + 900_000 + 900_000 - spent
    transactions = ledger(server, key)
    assert all(sum(transaction["entries_nano_usd"].values()) == 0 for transaction in transactions)
    settled = {t["id"]: t["amount_nano_usd"] for t in transactions if t["kind"] == "settle"}
    assert settled == {f"settle {row['request_id']}": row["cost_nano_usd"] for row in rows}


def test_parallel_requests_without_a_length_share_what_there_is(shop):
    server, admin, key = shop
    # Enough for 24 short answers, not for 24 whole contexts.
    credit(admin, 24 * 40 * TOKEN)
    outcomes = []

    def ask():
        with connect(server, api_key=key) as client:
            outcomes.append(client.chat.completions.create(model="myriad-mini", messages=[{"role": "user", "content": "Hello!"}]))

    threads = [threading.Thread(target=ask) for _ in range(24)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(outcomes) == 24 and {reply.choices[0].finish_reason for reply in outcomes} == {"stop"}
    spent = sum(reply.usage.cost_nano_usd for reply in outcomes)
    assert account(server, key)["balance_nano_usd"] == 24 * 40 * TOKEN - spent


def test_a_repeated_credit_counts_once_and_refusals_say_why(shop):
    server, admin, key = shop
    for _ in range(2):
        assert credit(admin, 5_000, id="invoice-7", kind="top_up", memo="paid").json()["balance_nano_usd"] == 5_000
    assert credit(admin, 6_000, id="invoice-7", kind="top_up").status_code == 409
    refused = credit(admin, 1, kind="refund")
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "over_charged"
    assert "0.000000001 USD" in refused.json()["error"]["message"]
    assert credit(admin, 6_000, kind="expire").json()["error"]["code"] == "insufficient_credit"
    assert credit(admin, -5_001, kind="adjust").json()["error"]["code"] == "insufficient_credit"
    assert credit(admin, -1_000, kind="adjust").json()["balance_nano_usd"] == 4_000
    assert credit(admin, 0).status_code == 409 and credit(admin, "x").status_code == 400
    assert admin.post("/admin/v1/credits", json={"account": "nobody", "amount": 1}).json()["error"]["param"] == "account"
    kinds = [(row["kind"], row["outcome"]) for row in ledger(server, key)]
    assert kinds.count(("top_up", "done")) == 1 and ("refund", "over_charged") in kinds
    assert httpx.get(f"{server.ops_url}/admin/v1/accounts", headers={"authorization": f"Bearer {key}"}).status_code == 403


def test_a_repeated_credit_is_told_from_the_first_and_written_down_once(shop):
    server, admin, key = shop
    for id, fields in (("invoice-8", {"kind": "top_up"}), ("gift", {"expires_at": 4_000_000_000}), ("too-much", {"kind": "refund"})):
        answers = [credit(admin, 7_000, id=id, memo=memo, **fields) for memo in ("as agreed", "sent again")]
        assert answers[0].status_code == answers[1].status_code == (409 if id == "too-much" else 200)
        if id == "too-much":
            assert answers[0].json() == answers[1].json()
            continue
        first, second = (answer.json()["transaction"] for answer in answers)
        assert (first["repeated"], second["repeated"]) == (False, True)
        assert second["memo"] == "as agreed", "the answer must say what is in the ledger"
    log = admin.get("/admin/v1/audit", params={"account": "acme", "limit": 100}).json()["data"]
    noted = [(row["subject"], row["detail"]["memo"]) for row in log if row["action"] == "account.credit"]
    assert noted == [("too-much", "as agreed"), ("gift", "as agreed"), ("invoice-8", "as agreed")]
    [bought] = [row for row in ledger(server, key) if row["id"] == "invoice-8"]
    assert bought["memo"] == "as agreed"


def test_amounts_are_read_to_the_nano_dollar_or_refused(shop):
    server, admin, key = shop
    total = 0
    # The first has no binary fraction that is near enough: in one it would be 12345678123456788.
    for written, nano in (("12345678.123456789", 12_345_678_123_456_789), ('"0.1"', 10**8), ('"0.000000001"', 1), ("1e-9", 1), ("5.0", 5 * 10**9)):
        body = f'{{"account": "acme", "kind": "top_up", "amount": {written}}}'
        done = admin.post("/admin/v1/credits", content=body, headers={"content-type": "application/json"})
        assert done.status_code == 200, done.text
        total += nano
        assert (done.json()["transaction"]["amount_nano_usd"], done.json()["balance_nano_usd"]) == (nano, total)
    for wrong, said in ((0.1 + 0.2, "at most 9 decimals"), ("0.0000000001", "at most 9 decimals"), ("five", "must be dollars"),
                        (True, "must be dollars"), ([1], "must be dollars"), (None, "missing"), (1e30, "can be counted"), (2 * 10**9, "at most")):
        refused = admin.post("/admin/v1/credits", json={"account": "acme", "amount": wrong})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "amount", wrong
        assert said in refused.json()["error"]["message"], refused.text
    both = credit(admin, 5, amount=6)
    assert both.status_code == 400 and "not the same" in both.json()["error"]["message"]
    assert account(server, key)["balance_nano_usd"] == total


def test_an_account_that_owes_cannot_become_prepaid(shop):
    server, admin, key = shop
    assert admin.patch("/admin/v1/accounts/acme", json={"credit": "unlimited"}).json()["credit"] == "unlimited"
    with connect(server, api_key=key) as client:
        cost = client.chat.completions.create(**PATIENT, max_tokens=10).usage.cost_nano_usd
    assert account(server, key)["balance_nano_usd"] == -cost < 0
    assert admin.patch("/admin/v1/accounts/acme", json={"credit": "prepaid"}).status_code == 409
    credit(admin, cost, kind="top_up")
    assert admin.patch("/admin/v1/accounts/acme", json={"credit": "prepaid"}).json()["balance_nano_usd"] == 0


def test_what_a_killed_server_held_comes_back(shop):
    server, admin, key = shop
    credit(admin, 2_000_000)
    with connect(server, api_key=key) as client:
        stream = client.chat.completions.create(**PATIENT, stream=True)
        for _ in range(200):
            next(stream)
        server.kill()
    server.start()
    server.settled(key)
    rows = httpx.get(f"{server.url}/v1/account/requests", headers={"authorization": f"Bearer {key}"}).json()["data"]
    assert [row["finish"] for row in rows] == ["interrupted"] and rows[0]["completion_tokens"] > 64
    shown = account(server, key)
    assert shown["balance_nano_usd"] == 2_000_000 - rows[0]["cost_nano_usd"] and shown["reserved_nano_usd"] == 0


def test_the_books_agree_and_the_reconciler_sees_when_they_do_not(shop):
    server, admin, key = shop
    credit(admin, 10_000_000)
    with connect(server, api_key=key) as client, connect(server) as other:
        for at in range(6):
            client.chat.completions.create(**PATIENT, max_tokens=5 + at)
            other.chat.completions.create(**PATIENT | {"model": "support"}, max_tokens=5)
    found = admin.get("/admin/v1/reconciliation?days=1").json()
    assert found["differences"] == 0 and found["compared"] > 20, found
    metrics = httpx.get(f"{server.ops_url}/metrics").text
    assert "myriad_reconciliation_differences 0" in metrics
    if "--database" in server.arguments:
        return
    with sqlite3.connect(server.data / "myriad.sqlite") as books:
        books.execute("UPDATE requests SET completion_tokens = completion_tokens + 1 WHERE account = 'acme'")
        books.execute("UPDATE balances SET available = available + 1 WHERE account = 'acme'")
    found = admin.get("/admin/v1/reconciliation?days=1").json()
    checks = {difference["check"] for difference in found["data"]}
    assert checks == {
        "usage = requests, completion", "usage = requests, cost", "requests = ledger, cost", "every request is charged what it costs",
        "ledger = balance, available"}
    assert f"myriad_reconciliation_differences {found['differences']}" in httpx.get(f"{server.ops_url}/metrics").text


def test_several_answers_share_what_there_is_and_none_hangs(shop):
    server, admin, key = shop
    credit(admin, 40 * TOKEN)
    with connect(server, api_key=key) as client:
        # Some of these end by themselves before the money does.
        reply = client.chat.completions.create(model="myriad-mini", messages=[{"role": "user", "content": "Hello!"}], n=6, temperature=1.5, seed=3)
    assert {choice.finish_reason for choice in reply.choices} <= {"stop", "length"}
    assert any(getattr(choice, "stop_reason", None) == "insufficient_quota" for choice in reply.choices)
    assert account(server, key)["balance_nano_usd"] == 40 * TOKEN - reply.usage.cost_nano_usd >= 0


def test_who_leaves_before_the_first_byte_leaves_no_open_row(shop):
    server, admin, key = shop
    credit(admin, 100_000_000)
    body = b'{"model": "myriad-mini", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    for at in range(200):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head.encode() + body)
            time.sleep(at % 20 / 5000)
    server.settled(key)
    with connect(server, api_key=key) as client:
        client.chat.completions.create(**PATIENT, max_tokens=5)
    found = admin.get("/admin/v1/reconciliation?days=1").json()
    assert found["differences"] == 0, found


def test_what_one_server_does_not_use_another_one_may_spend(shops):
    first, second, admin, key = shops
    credit(admin, 2_000 * TOKEN).raise_for_status()
    share_what_a_large_request_left(first, second, key)
    # Of what there is not, nobody is asked for: the answer is there at once.
    with connect(second, api_key=key) as client:
        with pytest.raises(APIStatusError, match="lower max_tokens"):
            client.chat.completions.create(**PATIENT, max_tokens=2_000)
    kinds = [row["kind"] for row in ledger(first, key)]
    assert "release" in kinds
    found = admin.get("/admin/v1/reconciliation?days=1").json()
    assert found["differences"] == 0, found
    for server in (first, second):
        assert server.stop() == 0, server.output
    first.start()
    shown = account(first, key)
    spent = sum(row["amount_nano_usd"] for row in ledger(first, key) if row["kind"] == "settle")
    assert (shown["balance_nano_usd"], shown["reserved_nano_usd"]) == (2_000 * TOKEN - spent, 0)
