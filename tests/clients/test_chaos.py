"""Chaos: under load clients leave, the server is killed and PostgreSQL restarts; then every book says the same, to the token."""

import asyncio
import json
import os
import random
import subprocess
import time
from dataclasses import dataclass, field

import httpx
import pytest

from server import KEY, ROOT

pytestmark = pytest.mark.books

# More of them make a benchmark of it.
REQUESTS = int(os.environ.get("MYRIAD_CHAOS_REQUESTS", "1000"))
CLIENTS = 32
TOKENS = (4, 100)
# Tokens that may be delivered beyond the last durable mark, and so are not charged when the server is killed: two marks' worth, and
# what waits between the driver and the connection.
BOUND = 64 + 32 + 1


@dataclass
class Seen:
    """What one client saw of its request."""

    asked: int
    leaves_after: int | None
    id: str | None = None
    tokens: int = 0
    usage: dict | None = None
    ended: str = "broken"


@dataclass
class Load:
    server: object
    key: str
    seen: list[Seen] = field(default_factory=list)
    started: int = 0

    async def run(self, disasters) -> None:
        async with httpx.AsyncClient(base_url=self.server.url, timeout=60, limits=httpx.Limits(max_connections=CLIENTS)) as http:
            await asyncio.gather(disasters(self), *(self.client(http, at) for at in range(CLIENTS)))

    async def client(self, http, at: int) -> None:
        chance = random.Random(at)
        while self.started < REQUESTS:
            self.started += 1
            asked = chance.randint(*TOKENS)
            seen = Seen(asked, chance.randint(1, asked) if chance.random() < 0.05 else None)
            self.seen.append(seen)
            try:
                await self.ask(http, seen, chance)
            except httpx.TransportError:
                await asyncio.sleep(0.1)

    async def ask(self, http, seen: Seen, chance) -> None:
        body = {
            "model": chance.choice(["myriad-mini", "support", "extract", "sql"]),
            "messages": [{"role": "user", "content": f"Number {chance.randint(0, 20)}, please."}],
            "max_tokens": seen.asked, "ignore_eos": True, "logprobs": True, "stream": True, "stream_options": {"include_usage": True},
        }
        async with http.stream("POST", "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {self.key}"}) as reply:
            if reply.status_code != 200:
                seen.ended = "refused"
                await asyncio.sleep(0.1)
                return
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return
                seen.id = event["id"]
                for choice in event["choices"]:
                    seen.tokens += len((choice["logprobs"] or {}).get("content", []))
                if event.get("usage"):
                    seen.usage, seen.ended = event["usage"], "finished"
                if seen.leaves_after is not None and seen.tokens >= seen.leaves_after and not seen.usage:
                    seen.ended = "left"
                    return


def prepare(server):
    """Prices, and a second account that pays in advance."""
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        admin.post("/admin/v1/prices", json={"input": 0.5, "cached_input": 0.05, "output": 2}).raise_for_status()
        admin.patch("/admin/v1/accounts/local", json={"credit": "prepaid"}).raise_for_status()
        admin.post("/admin/v1/credits", json={"account": "local", "amount": 1000}).raise_for_status()


def books(server):
    with server.http() as http, httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        found = admin.get("/admin/v1/reconciliation?days=2").json()
        month = time.strftime("%Y-%m", time.gmtime())
        return found, http.get("/v1/account").json(), http.get(f"/v1/account/statements/{month}").json()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_what_clients_saw_finished_is_charged_once_and_nothing_else(own_server, tmp_path, kind):
    folder = tmp_path / "postgres"
    arguments = ()
    if kind == "postgres":
        tmp_path.chmod(0o755)
        for parent in list(tmp_path.parents)[:3]:
            parent.chmod(0o755)
        subprocess.run([ROOT / "tests/postgres", "start", folder], check=True, capture_output=True)
        made = subprocess.run([ROOT / "tests/postgres", "database", folder], check=True, capture_output=True, text=True)
        arguments = ("--database", made.stdout.strip())
    try:
        server = own_server(*arguments)
        chaos(server, folder if kind == "postgres" else None)
    finally:
        if kind == "postgres":
            server.stop()
            subprocess.run([ROOT / "tests/postgres", "stop", folder], check=True)


def chaos(server, postgres) -> None:
    server.start()
    prepare(server)
    load = Load(server, KEY)

    async def disasters(load):
        while load.started < REQUESTS // 3:
            await asyncio.sleep(0.01)
        server.kill()
        await asyncio.to_thread(server.start)
        while load.started < 2 * REQUESTS // 3:
            await asyncio.sleep(0.01)
        if postgres:
            await asyncio.to_thread(subprocess.run, [ROOT / "tests/postgres", "restart", postgres], check=True)
        else:
            server.kill()
            await asyncio.to_thread(server.start)

    asyncio.run(load.run(disasters))
    server.settled(KEY)
    rows = {row["request_id"]: row for row in server.rows()}
    ended = {kind: [seen for seen in load.seen if seen.ended == kind] for kind in ("finished", "left", "broken", "refused")}
    counts = {kind: len(seen) for kind, seen in ended.items()}
    assert counts["finished"] > REQUESTS // 2 and counts["left"] > REQUESTS // 100 and counts["broken"] > 0, counts

    for seen in ended["finished"]:
        row = rows[seen.id]
        assert (row["finish"], row["completion_tokens"]) == ("length", seen.asked) == ("length", seen.usage["completion_tokens"]), row
        assert row["cost_nano_usd"] == seen.usage["cost_nano_usd"]
        assert seen.tokens == seen.asked
    for seen in ended["left"]:
        # What was generated until the cancel took effect is charged; the answer may have been complete by then. Where the server was
        # killed before that, its last mark is.
        row = rows[seen.id]
        unmarked = BOUND if row["finish"] == "interrupted" else 0
        assert seen.tokens - unmarked <= row["completion_tokens"] <= seen.asked, (seen, row)
    worst = 0
    for seen in ended["broken"]:
        row = rows.get(seen.id)
        if row:
            assert row["completion_tokens"] <= seen.tokens, (seen, row)
            worst = max(worst, seen.tokens - row["completion_tokens"])
    assert worst <= BOUND
    # Of what no client has heard anything, nothing is charged.
    heard = {seen.id for seen in load.seen}
    unheard = [row for row in rows.values() if row["request_id"] not in heard]
    assert all(row["completion_tokens"] == 0 for row in unheard), unheard
    assert all(row["cost_nano_usd"] == 0 for row in rows.values() if row["completion_tokens"] == 0)

    found, account, statement = books(server)
    assert found["differences"] == 0, found
    cost = sum(row["cost_nano_usd"] for row in rows.values())
    assert account["balance_nano_usd"] == 1000 * 10**9 - cost
    assert statement["closing_balance_nano_usd"] == account["balance_nano_usd"], statement
    print(f"{len(rows)} rows, {counts}, {worst} tokens at most not charged of an interrupted answer")
