"""What stands still for long: a server, which another closes and which then delivers no more than what a killed one would have; and a
database, for which answers wait."""

import json
import signal
import sqlite3
import threading
import time

import httpx
import pytest

from server import KEY, postgres_database
from test_chaos import BOUND

pytestmark = [pytest.mark.books, pytest.mark.waits]


def stream(server, ended: list) -> None:
    """How many tokens came, under which id, and whether it ended with an error."""
    body = {
        "model": "myriad-mini", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 1900, "ignore_eos": True,
        "logprobs": True, "stream": True,
    }
    tokens, request, error = 0, None, None
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                error = event["error"]
                break
            request = event["id"]
            tokens += sum(len((choice["logprobs"] or {}).get("content", [])) for choice in event["choices"])
    ended.append((request, tokens, error))


def test_a_server_that_stood_still_ends_its_streams_where_its_rows_were_closed(own_server):
    database = postgres_database()
    stopped, other = own_server("--database", database), own_server("--database", database)
    stopped.start()
    other.start()
    ended: list = []
    clients = [threading.Thread(target=stream, args=(stopped, ended)) for _ in range(4)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + 10
    while sum(row["completion_tokens"] > 0 for row in other.rows()) < len(clients):
        assert time.monotonic() < deadline, other.rows()
        time.sleep(0.01)
    stopped.signal(signal.SIGSTOP)
    try:
        other.settled(KEY)
    finally:
        stopped.signal(signal.SIGCONT)
    for client in clients:
        client.join()
    rows = {row["request_id"]: row for row in other.rows()}
    assert len(ended) == len(clients)
    for request, tokens, error in ended:
        row = rows[request]
        assert row["finish"] == "interrupted" and error, (row, error)
        assert row["completion_tokens"] <= tokens <= row["completion_tokens"] + BOUND, (row, tokens)
    with stopped.http() as http, httpx.Client(base_url=stopped.ops_url, headers=http.headers) as admin:
        deadline = time.monotonic() + 5
        while (found := admin.get("/admin/v1/reconciliation?days=1").json())["differences"]:
            assert time.monotonic() < deadline, found
        unbilled = next(line for line in admin.get("/metrics").text.splitlines() if line.startswith("myriad_unbilled_tokens_total "))
    assert int(unbilled.split()[1]) > 0


def test_an_answer_waits_for_a_ledger_that_does_not_answer(own_server):
    server = own_server().start()
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        admin.post("/admin/v1/prices", json={"input": 100, "output": 1000}).raise_for_status()
        admin.patch("/admin/v1/accounts/local", json={"credit": "prepaid"}).raise_for_status()
        admin.post("/admin/v1/credits", json={"account": "local", "amount": 100}).raise_for_status()
    # Without max_tokens the answers ask for credit again and again, for more than a server sets aside at once.
    body = {"model": "myriad-mini", "messages": [{"role": "user", "content": "Go on."}], "ignore_eos": True, "stream": True}
    ended: list = []
    grown = threading.Barrier(9)

    def client() -> None:
        with server.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as reply:
            events = []
            for line in reply.iter_lines():
                events.append(line)
                if len(events) == 3:
                    grown.wait(10)
        ends = [json.loads(line[6:]) for line in events if line.startswith("data: {") and '"finish_reason":"' in line]
        ended.append((ends[-1]["id"], ends[-1]["choices"][0]))

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    grown.wait(10)
    # Longer than the ledger is waited for.
    with sqlite3.connect(server.data / "myriad.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(12)
        other.execute("ROLLBACK")
    for thread in clients:
        thread.join()
    assert len(ended) == len(clients)
    for request, choice in ended:
        assert choice["finish_reason"] == "length" and choice.get("stop_reason") is None, choice
        assert server.row(request)["finish"] == "length"


def test_the_first_byte_waits_for_the_row_and_the_wait_is_measured(own_server):
    server = own_server().start()
    body = {"model": "myriad-mini", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 4, "stream": True}
    held = 0.5
    came: list[float] = []

    def client() -> None:
        with server.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as reply:
            next(reply.iter_raw())
            came.append(time.monotonic())

    with sqlite3.connect(server.data / "myriad.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=client)
        thread.start()
        time.sleep(held)
        released = time.monotonic()
        other.execute("ROLLBACK")
    thread.join()
    assert came and came[0] >= released
    lines = dict(line.rsplit(" ", 1) for line in httpx.get(f"{server.ops_url}/metrics").text.splitlines() if line[0] != "#")
    assert int(lines["myriad_row_wait_seconds_count"]) == 1
    assert held / 2 < float(lines["myriad_row_wait_seconds_sum"]) < 10
