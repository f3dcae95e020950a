"""What can be named as a model."""

import openai
import pytest

from server import MODEL

BUILT_IN = {"support", "extract"}


def test_the_list_holds_the_base_and_its_adapters(client):
    models = {model.id: model for model in client.models.list()}
    assert models[MODEL].object == "model"
    adapters = {id.rsplit("/")[-1]: model for id, model in models.items() if id != MODEL}
    assert BUILT_IN <= set(adapters)
    for name in BUILT_IN:
        assert adapters[name].parent == MODEL
        assert adapters[name].root


@pytest.mark.parametrize("name", [MODEL, "support", "support@1", "local/support", "local/support@1", "local%2Fsupport@1"])
def test_every_spelling_of_a_name_is_found(http, name):
    reply = http.get(f"/v1/models/{name}")
    assert reply.status_code == 200, reply.text
    assert reply.json()["object"] == "model"


def test_the_client_retrieves_an_adapter_of_an_account(client):
    assert client.models.retrieve("local/support@1").id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("local/suport")
    assert 'Did you mean "support"?' in caught.value.message or 'Did you mean "local/support"?' in caught.value.message


def test_health_and_version_need_no_key(server, http):
    del http.headers["authorization"]
    for path in ("/healthz", "/readyz", "/health", "/version"):
        assert http.get(path).status_code == 200, path
