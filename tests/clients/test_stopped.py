"""A server that stands still is closed by another; when it goes on, it delivers no more than what a killed one would have."""

import json
import signal
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
