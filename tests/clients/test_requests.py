"""Each request leaves one row, with the engine's counts, whoever stops first."""

import asyncio
import time

import httpx
import openai
import pytest

from server import KEY, MODEL
from talk import PROMPT, ask, connect, connect_async

# Long enough that no machine finishes it before the client has left.
LONG = 900


def test_a_row_says_what_the_reply_said(server, client):
    for options in ({}, {"n": 2}, {"model": "support@1"}):
        reply = ask(client, **options)
        row = server.row(reply.id)
        assert row["prompt_tokens"] == reply.usage.prompt_tokens
        assert row["cached_tokens"] == reply.usage.prompt_tokens_details.cached_tokens
        assert row["completion_tokens"] == reply.usage.completion_tokens
        assert row["finish"] == "length"
    assert row["model"].rsplit("/")[-1].startswith("support")


def test_rows_come_newest_first_and_page(server, client, http):
    ids = [ask(client, max_tokens=1).id for _ in range(3)]
    first = http.get("/v1/account/requests", params={"limit": 2}).json()
    assert first["object"] == "list" and first["has_more"]
    second = http.get("/v1/account/requests", params={"limit": 2, "after": first["data"][-1]["request_id"]}).json()
    listed = [row["request_id"] for row in first["data"] + second["data"]]
    assert listed[:3] == ids[::-1] and len(set(listed)) == 4


def test_a_page_after_what_is_not_there_is_refused(client, http):
    """An empty one would say that this was all."""
    ask(client, max_tokens=1)
    for path in ("requests", "ledger"):
        for after in ("nothing-like-it", ""):
            refused = http.get(f"/v1/account/{path}", params={"after": after})
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "after", (path, after)


def test_a_refused_request_leaves_no_row(server, client):
    before = len(server.rows())
    with pytest.raises(openai.BadRequestError):
        ask(client, temperature=9)
    with pytest.raises(openai.NotFoundError):
        ask(client, model="nothing-like-it")
    assert len(server.rows()) == before


def test_a_closed_stream_is_cancelled_and_counted(server, client):
    stream = ask(client, stream=True, max_tokens=LONG)
    seen = [next(stream) for _ in range(5)]
    stream.close()
    row = server.row(seen[0].id)
    assert row["finish"] == "cancelled"
    assert len(seen) - 1 <= row["completion_tokens"] < LONG


def test_a_client_that_gives_up_waiting_is_cancelled(server):
    before = {row["request_id"] for row in server.rows()}
    client = connect(server, timeout=0.15)
    with pytest.raises(openai.APITimeoutError):
        ask(client, max_tokens=LONG, n=4)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        new = [row for row in server.rows() if row["request_id"] not in before]
        if new and new[0]["finish"] != "running":
            break
        time.sleep(0.02)
    [row] = new
    assert row["finish"] == "cancelled" and row["completion_tokens"] < 4 * LONG


def test_cancelling_one_leaves_the_others_alone(server, client):
    expected = ask(client, max_tokens=48).choices[0].message.content

    async def crowd():
        async with connect_async(server) as client:
            leaving = [await ask(client, stream=True, max_tokens=LONG) for _ in range(3)]
            staying = [asyncio.ensure_future(ask(client, max_tokens=48)) for _ in range(4)]
            ids = [(await anext(aiter(stream))).id for stream in leaving]
            for stream in leaving:
                await stream.close()
            return ids, await asyncio.gather(*staying)

    ids, replies = asyncio.run(crowd())
    assert {reply.choices[0].message.content for reply in replies} == {expected}
    assert {server.row(id)["finish"] for id in ids} == {"cancelled"}


def test_the_account_knows_itself(http):
    account = http.get("/v1/account").json()
    assert account["id"] == "local"
    keys = http.get("/v1/account/keys").json()["data"]
    assert keys and KEY not in str(keys)
    made = http.post("/v1/account/limits", json={"period": "month", "amount": 9}).raise_for_status().json()
    (limit,) = http.get("/v1/account").json()["limits"]
    assert (limit["id"], limit["amount"], limit["reached"]) == (made["id"], 9, False)
    http.delete(f"/v1/account/limits/{made['id']}").raise_for_status()
    assert http.get("/v1/account").json()["limits"] == []


def test_keys_are_made_and_revoked(server, http):
    made = http.post("/v1/account/keys", json={"name": "ci"}).raise_for_status().json()
    assert made["key"].startswith("sk-myriad-")
    client = connect(server, api_key=made["key"])
    assert ask(client, max_tokens=1).id
    assert http.delete(f"/v1/account/keys/{made['id']}").is_success
    with pytest.raises(openai.AuthenticationError):
        ask(client, max_tokens=1)


def test_a_full_server_says_so_and_a_retry_gets_through(own_server):
    server = own_server("--max-running", "1", "--queue", "2").start()
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": 200, "ignore_eos": True}

    async def burst(retries: int):
        async with connect_async(server, max_retries=retries) as client:
            requests = (ask(client, max_tokens=200) for _ in range(6))
            return await asyncio.gather(*requests, return_exceptions=True)

    replies = asyncio.run(burst(0))
    refused = [reply for reply in replies if isinstance(reply, openai.APIStatusError)]
    assert refused and {error.status_code for error in refused} <= {429, 503}
    assert all(float(error.response.headers["retry-after"]) >= 0 for error in refused)
    assert all(int(error.response.headers["retry-after-ms"]) >= 0 for error in refused)
    assert not any(isinstance(reply, Exception) for reply in asyncio.run(burst(10)))
    rows = server.rows()
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert sum(row["finish"] == "length" for row in rows) == 6 - len(refused) + 6
    with httpx.Client(headers={"authorization": f"Bearer {KEY}"}) as http:
        assert http.post(f"{server.base_url}/chat/completions", json=body).status_code == 200
