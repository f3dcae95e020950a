"""What a caller can pass on: keys and roles, never more than it has itself, and nothing that outlives it."""

import time

import httpx
import pytest

pytestmark = pytest.mark.books


@pytest.fixture
def team(own_server, database):
    """An account with an owner, an admin and a developer; `as_(key)` calls with a key."""
    server = own_server(*database).start()
    clients = []

    def as_(key):
        clients.append(httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}))
        return clients[-1]

    with server.http() as http:
        for name, role in (("boss", "owner"), ("ann", "admin"), ("dev", "developer")):
            http.put(f"/v1/account/members/{name}", json={"role": role}).raise_for_status()
        keys = {name: http.post("/v1/account/keys", json={"member": name}).raise_for_status().json() for name in ("boss", "ann", "dev")}
        yield server, http, {name: as_(made["key"]) for name, made in keys.items()}, as_
    for client in clients:
        client.close()


def test_only_an_owner_makes_and_unmakes_owners(team):
    server, http, members, as_ = team
    boss, ann = members["boss"], members["ann"]
    boss_key = next(key["id"] for key in http.get("/v1/account/keys").json()["data"] if key["member"] == "boss")
    own_key = next(key["id"] for key in http.get("/v1/account/keys").json()["data"] if key["member"] is None)
    for refused in (
        ann.delete(f"/v1/account/keys/{own_key}"),
        ann.put("/v1/account/members/ann", json={"role": "owner"}),
        ann.put("/v1/account/members/new", json={"role": "owner"}),
        ann.put("/v1/account/members/boss", json={"role": "billing"}),
        ann.delete("/v1/account/members/boss"),
        ann.delete(f"/v1/account/keys/{boss_key}"),
        ann.post("/v1/account/keys", json={"member": "boss"}),
    ):
        assert refused.status_code == 403 and "owner" in refused.json()["error"]["message"], refused.text
    assert {row["name"]: row["role"] for row in boss.get("/v1/account/members").json()["data"]} == {
        "ann": "admin", "boss": "owner", "dev": "developer"}
    # What is not about owners is an admin's business.
    ann.put("/v1/account/members/clerk", json={"role": "billing"}).raise_for_status()
    ann.delete("/v1/account/members/clerk").raise_for_status()
    boss.put("/v1/account/members/ann", json={"role": "owner"}).raise_for_status()
    ann.delete("/v1/account/members/boss").raise_for_status()
    assert boss.get("/v1/account/members").status_code == 401
    # An owner may end the account's own key, as it may do anything.
    ann.delete(f"/v1/account/keys/{own_key}").raise_for_status()
    assert http.get("/v1/account").status_code == 401


def test_the_operators_admin_scope_sees_every_accounts_books(team):
    server, http, members, as_ = team
    key = http.post("/v1/account/keys", json={"scopes": ["admin"]}).raise_for_status().json()["key"]
    assert as_(key).get("/v1/account/usage").status_code == 403
    for part in ("usage", "ledger", "statements", "requests"):
        assert httpx.get(f"{server.ops_url}/admin/v1/accounts/local/{part}", headers=as_(key).headers).status_code == 200
    billing = http.post("/v1/account/keys", json={"scopes": ["billing"]}).raise_for_status().json()["key"]
    assert httpx.get(f"{server.ops_url}/admin/v1/accounts/local/usage", headers=as_(billing).headers).status_code == 403


def test_a_key_goes_with_the_member_whose_key_made_it(team):
    server, http, members, as_ = team
    child = members["ann"].post("/v1/account/keys", json={"name": "child"}).json()
    assert (child["member"], child["role"]) == ("ann", "admin")
    grandchild = as_(child["key"]).post("/v1/account/keys", json={}).json()
    of_dev = members["ann"].post("/v1/account/keys", json={"member": "dev"}).json()
    assert (of_dev["member"], of_dev["scopes"]) == ("dev", ["inference", "adapters", "fine-tuning"]), "a role's scopes are the default"
    # Keys for the operator's own account are bounded on the operators' listener too.
    by_operator = httpx.post(
        f"{server.ops_url}/admin/v1/accounts/local/keys", headers=members["ann"].headers, json={}).raise_for_status().json()
    assert by_operator["member"] == "ann"
    http.delete("/v1/account/members/ann").raise_for_status()
    for key, status in ((child, 401), (grandchild, 401), (by_operator, 401), (of_dev, 200)):
        assert as_(key["key"]).get("/v1/account").status_code == status
    assert http.post("/v1/account/keys", json={}).json()["member"] is None, "the account's own keys make such keys"


def test_a_key_makes_none_that_outlives_it_or_can_do_more(team):
    server, http, members, as_ = team
    end = int(time.time()) + 3600
    ends = http.post("/v1/account/keys", json={"expires_at": end, "scopes": ["inference", "admin"]}).json()
    maker = as_(ends["key"])
    child = maker.post("/v1/account/keys", json={}).json()
    assert (child["expires_at"], child["scopes"]) == (end, ["inference", "admin"])
    assert maker.post("/v1/account/keys", json={"expires_at": end - 60}).json()["expires_at"] == end - 60
    later = maker.post("/v1/account/keys", json={"expires_at": end + 1})
    assert later.status_code == 400 and later.json()["error"]["param"] == "expires_at" and str(end) in later.text
    wider = maker.post("/v1/account/keys", json={"scopes": ["billing"]})
    assert wider.status_code == 400 and wider.json()["error"]["param"] == "scopes"
    assert maker.post("/v1/account/keys", json={"member": "dev"}).json()["scopes"] == ["inference"], "what both may"


def test_a_misspelt_field_is_refused_by_name_and_changes_nothing(team):
    server, http, as_name, as_ = team
    with httpx.Client(base_url=server.ops_url, headers=http.headers) as admin:
        admin.post("/admin/v1/accounts", json={"id": "acme"}).raise_for_status()
        bodies = [
            (admin, "POST", "/admin/v1/accounts", {"id": "other", "credits": "prepaid"}, "credits", "credit"),
            (admin, "PATCH", "/admin/v1/accounts/acme", {"credit": "prepaid", "strip_customer": "cus_1"}, "strip_customer", "stripe_customer"),
            (admin, "POST", "/admin/v1/credits", {"account": "acme", "amount": 1, "expire_at": 4_000_000_000}, "expire_at", "expires_at"),
            (admin, "POST", "/admin/v1/prices", {"input": 1, "output": 1, "models": "local/support"}, "models", "model"),
            (admin, "POST", "/admin/v1/prices/rerate", {"version": 1, "from": 0, "to": 1, "aply": True}, "aply", "apply"),
            (admin, "POST", "/admin/v1/accounts/acme/keys", {"name": "k", "expire_at": 4_000_000_000}, "expire_at", "expires_at"),
            (admin, "POST", "/admin/v1/accounts/acme/limits", {"amount": 1, "period": "day", "subjects": "k"}, "subjects", "subject"),
            (http, "POST", "/v1/account/keys", {"name": "k", "scope": ["inference"]}, "scope", "scopes"),
            (http, "POST", "/v1/account/limits", {"amount": 1, "period": "day", "knd": "alert"}, "knd", "kind"),
            (http, "POST", "/v1/account/webhooks", {"url": "https://example.com/", "urls": []}, "urls", "url"),
            (http, "PUT", "/v1/account/members/zoe", {"role": "developer", "rolle": "owner"}, "rolle", "role"),
        ]
        before = admin.get("/admin/v1/audit", params={"limit": 1}).json()["data"]
        for client, method, path, body, wrong, meant in bodies:
            refused = client.request(method, path, json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (400, "unknown_field", wrong), (path, refused.text)
            assert f'did you mean "{meant}"?' in error["message"] and "the fields are" in error["message"], error
        assert admin.get("/admin/v1/audit", params={"limit": 1}).json()["data"] == before


def test_the_first_member_is_an_owner(own_server, database):
    server = own_server(*database, key=None).start()
    refused = server.cli("members", "set", "ann", "developer")
    assert refused.returncode != 0 and "first one must be an owner" in refused.stderr and "members set NAME owner" in refused.stderr
    assert server.cli("members", "set", "boss", "owner").returncode == 0
    assert server.cli("members", "set", "ann", "developer").returncode == 0
    assert '"boss" is the only owner' in server.cli("members", "set", "boss", "admin").stderr
    made = server.cli("keys", "create", "laptop", "--member", "ann")
    assert "ann's, who is developer, and may do inference,adapters,fine-tuning" in made.stdout
