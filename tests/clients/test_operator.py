"""The operator's command line: accounts, credit, keys and members, and the way back in without a key."""

import json
import re
import time

import httpx
import pytest
from openai import APIStatusError, PermissionDeniedError

from server import PATIENCE_S
from talk import ask, connect

pytestmark = pytest.mark.books

KEY = re.compile(r"sk-myriad-[0-9A-Za-z]+")


@pytest.fixture
def shop(own_server, database):
    """A server as a person starts it, with its key in that person's credentials file."""
    server = own_server(*database, key=None).start()

    def run(*arguments, **options):
        done = server.cli(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def accounts(*arguments):
        return run("accounts", *arguments, "--ops-url", server.ops_url)

    yield server, run, accounts, database


def cells(table: str) -> list[list[str]]:
    """A printed table without its heading."""
    return [re.split(r" {2,}", line.strip()) for line in table.splitlines()[1:]]


def test_an_account_is_made_credited_changed_and_given_keys(shop):
    server, run, accounts, _ = shop
    assert cells(accounts()) == [["local", "unlimited", "$0.000000000", "$0.000000000", "active"]]
    made = accounts("create", "acme", "--prepaid", "--grant", "0.000000001")
    (key,) = KEY.findall(made)
    assert "not shown again" in made and "$0.000000001" in made
    assert cells(accounts("credit", "acme", "5", "--kind", "top_up", "--id", "invoice-7", "--memo", "paid")) == [
        ["acme", "prepaid", "$5.000000001", "$0.000000000", "active"]]
    again = accounts("credit", "acme", "5", "--kind", "top_up", "--id", "invoice-7")
    assert "$5.000000001" in again and "invoice-7 was there before: nothing was changed." in again, "a repeat counted twice, or is not told"
    assert "$4.500000001" in accounts("credit", "acme", "--kind", "adjust", "-0.5")
    assert "unlimited" in accounts("set", "acme", "--credit", "unlimited")
    with connect(server, api_key=key) as client:
        ask(client)
    assert [row[:2] for row in cells(accounts("list"))] == [["acme", "unlimited"], ["local", "unlimited"]]

    (second,) = KEY.findall(accounts("key", "acme"))
    first_id, second_id = [row[0] for row in cells(accounts("keys", "acme"))]
    assert f"{first_id} is revoked" in accounts("revoke", "acme", first_id)
    states = {row[0]: row[3] for row in cells(accounts("keys", "acme"))}
    assert states == {first_id: "revoked", second_id: "active"}
    for opens, status in ((key, 401), (second, 200)):
        answer = httpx.get(f"{server.url}/v1/account", headers={"authorization": f"Bearer {opens}"})
        assert answer.status_code == status
    ledger = cells(run("ledger", "--api-key", second, "--base-url", server.url))
    assert sorted(row[1:4] for row in ledger) == [
        ["adjust", "-$0.500000000", "done"], ["grant", "$0.000000001", "done"], ["top_up", "$5.000000000", "done"]]

    for arguments, said in (
        *((("create", "other", "--grant", wrong), "must be above 0 and at most 1000000000.") for wrong in ("0", "1000000001")),
        (("create", "acme"), "there is an account acme already"),
        (("create", "No Name"), "is not an account name"),
        (("credit", "acme", "five"), "must be dollars"),
        (("credit", "acme", "1", "--kind", "refund"), "more than was charged"),
        (("credit", "nobody", "1"), "no account nobody"),
        (("key", "nobody"), "no account nobody"),
        (("revoke", "acme", "a/../b"), "no such key"),
    ):
        refused = server.cli("accounts", *arguments, "--ops-url", server.ops_url)
        assert refused.returncode != 0 and said in refused.stderr and not KEY.search(refused.stdout), (arguments, refused)
    assert [row[0] for row in cells(accounts())] == ["acme", "local"], "what is refused makes no account"
    for arguments, flag in ((("accounts", "--ops-url"), "--ops-url"), (("usage", "--account", "acme", "--ops-url"), "--ops-url"), (("keys", "list", "--base-url"), "--base-url")):
        nobody = server.cli(*arguments, "http://127.0.0.1:9", "--api-key", second)
        assert "no server answers at http://127.0.0.1:9;" in nobody.stderr and f"name another with {flag}\n" in nobody.stderr, nobody.stderr
    refused = server.cli("accounts", "--ops-url", server.ops_url, "--api-key", second, "--base-url", server.url)
    assert "the account that runs the server" in refused.stderr


def test_the_operator_reads_and_limits_another_account(shop):
    server, run, accounts, _ = shop
    ops = ("--ops-url", server.ops_url)
    run("prices", "set", "--input", "1", "--output", "4", *ops)
    (key,) = KEY.findall(accounts("create", "acme", "--grant", "5"))
    with connect(server, api_key=key) as client:
        reply = ask(client)
    cost = f"${reply.usage.cost_nano_usd / 1e9:.9f}"
    as_acme = ("--api-key", key, "--base-url", server.url)
    by_operator = ("--account", "acme", *ops)
    for command in (("usage",), ("usage", "--by", "model,day"), ("ledger",), ("statements",), ("statements", reply_month(reply)),
                    ("statements", reply_month(reply), "--csv"), ("limits",), ("audit",)):
        seen = run(*command, *by_operator)
        assert seen == run(*command, *as_acme), command
        if command[0] in ("usage", "statements") and len(command) > 1:
            assert cost in seen.replace("-$", "$") or cost[1:] in seen, (command, seen)
    assert [row[0] for row in cells(run("usage", *by_operator))] == [reply.id]
    assert run("usage").count("\n") == 1, "the operator's own account has asked nothing"

    cap = run("limits", "set", "0", "--per", "day", *by_operator).split()[0]
    with connect(server, api_key=key) as client, pytest.raises(APIStatusError, match="cap"):
        ask(client)
    assert cells(run("limits", *as_acme))[0][-1] == "operator"
    assert "only the operator" in server.cli("limits", "remove", cap, *as_acme).stderr
    assert "removed" in run("limits", "remove", cap, *by_operator)
    assert [row[2] for row in cells(run("audit", "--limit", "2", *by_operator))] == ["limit.removed", "limit.set"]
    everyone = cells(run("audit", "--all", "--limit", "100", *ops))
    assert {row[1] for row in everyone} == {"acme", "local"} and everyone[-1][4] == "the server"
    assert {row[1] for row in cells(run("audit", "--limit", "100"))} == {"local"}

    # Nobody else: another account's key, and an account that is not there.
    for command in (("usage",), ("usage", "--by", "day"), ("ledger",), ("statements",), ("statements", reply_month(reply)), ("limits",), ("audit",)):
        refused = server.cli(*command, "--account", "local", *ops, *as_acme)
        assert refused.returncode != 0 and "the account that runs the server" in refused.stderr, (command, refused)
        missing = server.cli(*command, "--account", "nobody", *ops)
        assert missing.returncode != 0 and "no account nobody" in missing.stderr, (command, missing)
    assert "Nothing goes to Stripe yet" in run("exports", *ops)
    assert "does not export" in server.cli("exports", "retry", *ops).stderr


def test_a_suspended_account_is_closed_to_its_keys_until_it_is_resumed(shop, own_server):
    server, run, accounts, database = shop
    (key,) = KEY.findall(accounts("create", "acme"))
    # On PostgreSQL another server has the account too, and must know within a second.
    servers = [server, own_server(*database).start()] if database else [server]
    bearer = {"authorization": f"Bearer {key}"}

    def answers(status):
        for one in servers:
            deadline = time.monotonic() + (0.2 if one is server else 1.5)
            while (answer := httpx.get(f"{one.url}/v1/account", headers=bearer)).status_code != status:
                assert time.monotonic() < deadline, (one is server, answer.text)
                time.sleep(0.02)
        return answer

    with connect(server, api_key=key) as client:
        running = client.chat.completions.create(model="myriad-mini", messages=[{"role": "user", "content": "Hello"}],
                                                 max_tokens=900, stream=True, extra_body={"ignore_eos": True})
        next(iter(running))
        assert cells(accounts("suspend", "acme"))[0][-1] == "suspended"
        refused = answers(403).json()["error"]
        assert (refused["code"], refused["type"]) == ("account_suspended", "permission_error") and "resume it" in refused["message"]
        with pytest.raises(PermissionDeniedError, match="suspended"):
            ask(client)
        # What ran is answered in full.
        *_, last = running
        assert last.choices[0].finish_reason == "length"
    assert {row[0]: row[-1] for row in cells(accounts())} == {"acme": "suspended", "local": "active"}
    (spare,) = KEY.findall(accounts("key", "acme"))
    assert httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {spare}"}).status_code == 403
    accounts("suspend", "acme")
    server.kill()
    server.start()
    answers(403)
    assert cells(accounts("resume", "acme"))[0][-1] == "active"
    answers(200)
    with connect(server, api_key=key) as client:
        ask(client)
    where = database or ("--data", str(server.data))
    accounts("suspend", "acme")
    assert "acme is suspended: the key opens nothing until" in run("accounts", "recover", *where, "--account", "acme")
    accounts("resume", "acme")
    assert "suspended" not in run("accounts", "recover", *where, "--account", "acme")
    changes = [row[2:5] for row in cells(run("audit", "--account", "acme", "--ops-url", server.ops_url)) if row[2].startswith("account.")]
    assert changes == [*[[f"account.{what}", "acme", "local"] for what in ("resumed", "suspended") * 2], ["account.created", "acme", "local"]]
    assert "runs the server" in server.cli("accounts", "suspend", "local", "--ops-url", server.ops_url).stderr
    assert "no account nobody" in server.cli("accounts", "suspend", "nobody", "--ops-url", server.ops_url).stderr


def reply_month(reply) -> str:
    return time.strftime("%Y-%m", time.gmtime(reply.created))


def test_keys_have_scopes_an_end_and_an_owner(shop):
    server, run, accounts, _ = shop
    assert cells(run("members", "set", "bob b", "owner"))[0][:2] == ["bob b", "owner"]
    assert cells(run("members", "set", "ann", "developer")) == [["ann", "developer", "inference,adapters,fine-tuning"]]
    assert [row[0] for row in cells(run("members"))] == ["ann", "bob b"]
    (key,) = KEY.findall(run("keys", "create", "laptop", "--scope", "inference", "--scope", "adapters", "--expires", "30", "--member", "ann"))
    with connect(server, api_key=key) as client:
        ask(client)
    row = next(row for row in cells(run("keys", "list")) if row[1] == "laptop")
    assert row[3:5] == ["active", "inference,adapters"] and row[7] == "ann" and key.endswith(row[2].removeprefix("..."))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row[5]) and re.fullmatch(r"\d{4}-\d\d-\d\d", row[6])
    assert "may" in server.cli("usage", "--api-key", key, "--base-url", server.url).stderr
    assert "only owner" in server.cli("members", "remove", "bob b").stderr
    assert "ann is no member any more" in run("members", "remove", "ann")
    assert next(row for row in cells(run("keys", "list")) if row[1] == "laptop")[3] == "revoked"
    assert "scopes must be" in server.cli("keys", "create", "x", "--scope", "everything").stderr
    assert "no member" in server.cli("keys", "create", "x", "--member", "carol").stderr
    assert "owner, admin, developer, billing" in server.cli("members", "set", "x", "king").stderr


@pytest.mark.parametrize("running", [True, False])
def test_who_has_lost_the_last_key_gets_a_new_one_from_the_database(shop, running):
    server, run, accounts, database = shop
    where = database or ("--data", str(server.data))
    if running:
        # Named in the server's configuration file.
        file = server.folder / "home/.config/myriad/config.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{where[0].removeprefix('--')} = {json.dumps(where[1])}\n")
        where = ()
    if not running:
        assert server.stop() == 0
    recovered = run("accounts", "recover", *where)
    (key,) = KEY.findall(recovered)
    if not running:
        server.start()
    with server.http() as http:
        http.headers["authorization"] = f"Bearer {key}"
        # A running server looks for changes of keys several times a second.
        deadline = time.monotonic() + PATIENCE_S
        while (answer := http.get("/v1/account/keys")).status_code == 401 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert answer.status_code == 200 and answer.json()["data"][-1]["name"] == "recovered"
    refused = server.cli("accounts", "recover", *where, "--account", "acme")
    assert refused.returncode == 1 and "no account acme; there are local" in refused.stderr


def test_a_database_that_is_not_there_is_not_made(own_server, tmp_path):
    server = own_server()
    said = server.cli("accounts", "recover", "--data", str(tmp_path / "nowhere")).stderr
    assert "no database at" in said and "--data" in said
    said = server.cli("accounts", "recover", "--database", f"sqlite:{tmp_path / 'none.sqlite'}").stderr
    assert "none.sqlite" in said
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / "none.sqlite").exists()
