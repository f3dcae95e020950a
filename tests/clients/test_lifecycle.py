"""Starting, stopping and dying: nothing that a client saw finished is lost, and no request has two rows."""

import signal
import threading

import httpx
import openai
import pytest

import lora
from server import Server
from talk import ask, connect

LONG = 900


def open_streams(server: Server, count: int) -> tuple[list, list[list]]:
    """Streams that have shown their first chunks, and what they showed."""
    client = connect(server)
    streams = [
        ask(client, stream=True, max_tokens=LONG, messages=[{"role": "user", "content": f"Hello {i}"}]) for i in range(count)
    ]
    return streams, [[next(stream) for _ in range(4)] for stream in streams]


def test_kill_9_loses_nothing_that_was_finished(own_server):
    server = own_server().start()
    with server.http() as http:
        assert http.put("/v1/adapters/local/kept", files=lora.parts(lora.adapter(1)), data={"alias": "prod"}).is_success
    finished = [ask(connect(server), model=model) for model in ("myriad-mini", "support", "kept@prod")]
    [*_, usage] = ask(connect(server), stream=True, stream_options={"include_usage": True})
    _, seen = open_streams(server, 3)
    server.kill()

    server.start()
    rows = {row["request_id"]: row for row in server.rows()}
    assert len(rows) == len(server.rows()), "a request has two rows"
    for reply in [*finished, usage]:
        assert rows[reply.id]["finish"] == "length"
        assert rows[reply.id]["completion_tokens"] == reply.usage.completion_tokens == 24
    for chunks in seen:
        row = rows[chunks[0].id]
        assert row["finish"] == "interrupted" and 0 <= row["completion_tokens"] < LONG
    again = ask(connect(server), model="kept@prod")
    assert again.choices[0].message.content == finished[2].choices[0].message.content


def test_sigterm_lets_running_answers_finish(own_server):
    server = own_server().start()
    streams, seen = open_streams(server, 2)
    server.signal(signal.SIGTERM)
    chunks = [[*first, *rest] for first, rest in zip(seen, streams, strict=True)]
    assert server.wait() == 0, server.output
    assert [len([c for c in stream if c.choices[0].finish_reason == "length"]) for stream in chunks] == [1, 1]
    with pytest.raises(openai.APIConnectionError):
        ask(connect(server))
    server.start()
    for stream in chunks:
        row = server.row(stream[0].id)
        assert row["finish"] == "length" and row["completion_tokens"] == LONG


def test_a_drain_that_takes_too_long_ends_with_an_error(own_server):
    server = own_server("--drain-timeout-s", "0").start()
    [stream], [seen] = open_streams(server, 1)
    ended = []

    def read():
        try:
            ended.extend(stream)
        except openai.APIError as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output
    reader.join(10)
    assert isinstance(ended[-1], openai.APIError)
    row = server.start().row(seen[0].id)
    assert row["finish"] in ("error", "cancelled") and row["completion_tokens"] < LONG


def fails_with(server: Server) -> str:
    server.spawn()
    assert server.wait() != 0
    return server.output


def test_a_data_directory_has_one_process(own_server):
    first = own_server().start()
    message = fails_with(own_server("--data", str(first.data)))
    assert "in use" in message and str(first.data) in message and "--data" in message


def test_a_port_in_use_says_what_to_try(own_server, server):
    other = own_server(port=server.port)
    message = fails_with(other)
    assert f"port {server.port} is in use" in message and "--listen" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--model", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--listen", "nonsense"), "--listen"),
        (("--dtype", "f12"), "f32"),
    ],
)
def test_a_wrong_setting_is_named(own_server, arguments, expected):
    assert expected in fails_with(own_server(*arguments))


def test_an_architecture_that_is_not_supported_is_told_those_that_are(own_server, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["ZebraForCausalLM"], "model_type": "zebra"}')
    message = fails_with(own_server("--model", str(model)))
    assert "ZebraForCausalLM" in message and "LlamaForCausalLM" in message and "Qwen3ForCausalLM" in message


def test_a_key_is_made_saved_and_found_by_the_client_commands(own_server, tmp_path):
    server = own_server(key=None).start()
    chat = server.cli("chat", "support", "--message", "Where is my order?")
    assert chat.returncode == 0 and chat.stdout.strip(), chat.stderr
    folder = tmp_path / "my-lora"
    folder.mkdir()
    for name, content in lora.adapter(3).items():
        (folder / name).write_bytes(content)
    pushed = server.cli("push", str(folder), "billing-bot")
    assert pushed.returncode == 0 and "live in" in pushed.stdout and "billing-bot@1" in pushed.stdout, pushed.stderr
    assert "billing-bot" in server.cli("models").stdout
    wrong = server.cli("chat", "biling-bot", "--message", "Hi")
    assert wrong.returncode != 0 and 'Did you mean "billing-bot"?' in wrong.stderr
    usage = server.cli("usage")
    assert usage.returncode == 0 and "support" in usage.stdout


def test_the_ops_listener_tells_health(server):
    assert httpx.get(f"http://127.0.0.1:{server.ops_port}/healthz").status_code == 200
