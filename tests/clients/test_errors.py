"""Errors arrive as the client's own types and say what to do."""

import httpx
import openai
import pytest

from server import MODEL, free_port
from talk import PROMPT, ask, connect


def test_a_misspelt_adapter_is_told_its_neighbour(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="suport")
    assert 'model "suport" not found. Did you mean "support"?' in caught.value.message
    assert caught.value.code == "model_not_found" and caught.value.body["type"]


def test_an_unknown_version_or_alias_is_not_found(client):
    for model in ("support@99", "support@nowhere", "nobody/support"):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(client, model=model)
        assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("key", ["sk-myriad-wrong", "x" * 3000])
def test_a_wrong_key_is_refused(server, key):
    with pytest.raises(openai.AuthenticationError):
        ask(connect(server, api_key=key))


def test_no_key_is_refused(http):
    del http.headers["authorization"]
    reply = http.get("/v1/models")
    assert reply.status_code == 401 and reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("top_p", -0.5),
        ("n", 0),
        ("n", 10_000),
        ("max_tokens", -1),
        ("max_completion_tokens", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"99999999": 1}),
        ("logit_bias", {"a": 1}),
        ("top_logprobs", 3),
        ("top_logprobs", 1000),
        ("stop", ["a"] * 1000),
        ("stop", 7),
        ("seed", "x"),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "wizard", "content": "x"}]),
        ("top_k", -5),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
    ],
)
def test_a_bad_parameter_is_named(http, param, value):
    options = {"logprobs": True} if (param, value) == ("top_logprobs", 1000) else {}
    reply = http.post("/v1/chat/completions", json={"model": MODEL, "messages": PROMPT, **options, param: value})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"].startswith(param) and error["message"]


def test_the_client_raises_it_as_its_own_type(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, temperature=5)
    assert caught.value.param == "temperature" and "temperature" in caught.value.message


def test_a_prompt_beyond_the_context_says_its_length(client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, messages=[{"role": "user", "content": "a b c d " * 20_000}], stream=stream)
        assert "maximum context length is" in caught.value.message
        assert caught.value.code == "context_length_exceeded"


def test_a_body_that_is_no_json_is_a_bad_request(http):
    reply = http.post("/v1/chat/completions", content=b'{"model": ', headers={"content-type": "application/json"})
    assert reply.status_code == 400 and reply.json()["error"]["message"]


def test_a_body_without_bounds_is_refused(http):
    body = b'{"model": "myriad-mini", "messages": [{"role": "user", "content": "' + b"a" * (64 << 20)
    try:
        reply = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    except httpx.TransportError:
        return  # a server may hang up on a body that it will not read
    assert reply.status_code == 413 and reply.json()["error"]["message"]


def test_deep_json_is_refused_and_the_server_lives(http):
    body = b'{"model":"myriad-mini","messages":' + b"[" * 200_000
    reply = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/nothing", "/v2"])
def test_what_is_not_there_is_404_with_a_sentence(http, path):
    reply = http.post(path, json={})
    assert reply.status_code == 404 and reply.json()["error"]["message"]


def test_a_wrong_method_is_an_error_of_the_same_shape(http):
    reply = http.get("/v1/chat/completions")
    assert reply.status_code in (404, 405) and reply.json()["error"]["message"]


def test_no_server_is_a_connection_error():
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{free_port()}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        ask(client)
