"""An adapter is live the moment it is uploaded; one that would be served wrongly is refused and leaves nothing."""

import array
import io
import json
import math
import tarfile
import zipfile
from pathlib import Path
from urllib.parse import quote

import openai
import pytest

import lora
from server import MODEL, MODEL_FOLDER, ROOT
from talk import ask

REFUSED = ROOT / "tests/oracle/fixtures/refused"


def answer(client, model: str) -> str:
    return ask(client, model=model).choices[0].message.content


def upload(http, name: str, files: lora.Files, **data):
    return http.put(f"/v1/adapters/local/{name}", files=lora.parts(files), data=data)


def names(http) -> set[str]:
    return {adapter["name"].rsplit("/")[-1] for adapter in http.get("/v1/adapters").raise_for_status().json()["data"]}


def test_the_built_in_adapters_change_the_answer(client):
    prompt = [{"role": "user", "content": "Where is my order 1234?"}]
    answers = {ask(client, model=model, messages=prompt).choices[0].message.content for model in (MODEL, "support", "extract")}
    assert len(answers) == 3


def test_an_upload_answers_at_once_under_every_name(http, client):
    reply = upload(http, "fresh", lora.adapter(101), alias="staging")
    assert reply.is_success, reply.text
    version = reply.json()
    assert version["version"] == 1 and version["rank"] == 4 and version["tensors"] == 6 * lora.layers()
    assert version["canary"]["kl"] > 0
    answers = {answer(client, name) for name in ("fresh", "fresh@1", "fresh@staging", "local/fresh", "local/fresh@1")}
    assert len(answers) == 1 and answers != {answer(client, MODEL)}
    assert "fresh" in {model.id.rsplit("/")[-1] for model in client.models.list()}


def test_versions_aliases_and_promotion(http, client):
    assert upload(http, "moving", lora.adapter(1)).json()["version"] == 1
    first = answer(client, "moving")
    assert upload(http, "moving", lora.adapter(2), alias="next").json()["version"] == 2
    second = answer(client, "moving")
    assert first != second and answer(client, "moving@1") == first and answer(client, "moving@next") == second
    assert upload(http, "moving", lora.adapter(1)).json()["version"] == 1, "the same bytes are the same version"
    moved = http.put("/v1/adapters/local/moving/aliases/default", json={"version": 1})
    assert moved.is_success, moved.text
    assert answer(client, "moving") == first
    assert upload(http, "moving", lora.adapter(3)).json()["version"] == 3
    assert answer(client, "moving") == first, "a pinned name does not follow the newest version"
    assert http.delete("/v1/adapters/local/moving/aliases/default").is_success
    assert answer(client, "moving") == answer(client, "moving@3"), "a name that was unpinned follows the newest version"
    assert http.delete("/v1/adapters/local/moving/versions/2").status_code == 409, "an alias leads to it"
    versions = http.get("/v1/adapters/local/moving/versions").json()["data"]
    assert sorted(version["version"] for version in versions) == [1, 2, 3]


def packed_tar(files: lora.Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"my-adapter/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def packed_zip(files: lora.Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_every_way_to_send_it_makes_the_same_adapter(http):
    files = lora.adapter(7)
    sent = {
        "by-tar": {"a.tar": packed_tar(files)},
        "by-zip": {"a.zip": packed_zip(files)},
        "by-files": files,
        "in-a-folder": {f"checkpoint-9/{name}": content for name, content in files.items()},
    }
    replies = [upload(http, name, content).json() for name, content in sent.items()]
    posted = http.post("/v1/adapters", files=[*lora.parts(files), ("name", (None, "by-post"))])
    assert posted.is_success, posted.text
    digests = {reply["digest"] for reply in [*replies, posted.json()]}
    assert len(digests) == 1


def test_deleting_takes_the_name_away(http, client):
    assert upload(http, "gone", lora.adapter(8)).is_success
    answer(client, "gone")
    assert http.delete("/v1/adapters/local/gone").is_success
    with pytest.raises(openai.NotFoundError):
        answer(client, "gone")
    assert "gone" not in names(http)
    assert http.delete("/v1/adapters/local/gone").status_code == 404


def refused(http, name: str, files: lora.Files) -> str:
    before = names(http)
    reply = upload(http, name, files)
    assert reply.status_code == 422, reply.text
    assert names(http) == before
    return reply.json()["error"]["message"]


def rewritten(files: lora.Files, **changes) -> lora.Files:
    config = json.loads(files["adapter_config.json"]) | changes
    return files | {"adapter_config.json": json.dumps(config).encode()}


# What the refusal must name.
REFUSED_KINDS = {
    "bias": "bias",
    "dora": "use_dora",
    "embedding": "embed_tokens",
    "fan-in-fan-out": "fan_in_fan_out",
    "ia3": "IA3",
    "lm-head": "lm_head",
    "lora-bias": "lora_bias",
    "modules-to-save": "modules_to_save",
    "pickle": "pickle",
    "pissa": "pissa",
    "trainable-tokens": "trainable_token_indices",
}


@pytest.mark.parametrize("kind", REFUSED_KINDS)
def test_kinds_that_would_be_served_wrongly_are_refused_by_name(http, kind):
    """As peft writes them for a model of another size; the kind is told before the size."""
    files = {path.name: path.read_bytes() for path in (REFUSED / kind).iterdir()}
    message = refused(http, f"refused-{kind}", rewritten(files, base_model_name_or_path=MODEL))
    assert REFUSED_KINDS[kind] in message and "Nothing was stored." in message


def with_tensor(name: str, shape: list[int], value: float = 0.01) -> lora.Files:
    """A good adapter of one module, with this tensor beside its own or in the place of it."""
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    outputs, inputs = lora.shapes()["self_attn.q_proj"]
    sizes = {f"{prefix}.lora_A.weight": [4, inputs], f"{prefix}.lora_B.weight": [outputs, 4], name: shape}
    tensors = {path: (size, filled(size, value if path == name else 0.01)) for path, size in sizes.items()}
    return {"adapter_config.json": lora.config(4, ("self_attn.q_proj",)), "adapter_model.safetensors": lora.safetensors(tensors)}


def filled(shape: list[int], value: float) -> array.array:
    return array.array("f", [value]) * math.prod(shape)


def test_a_tensor_of_another_size_is_named(http):
    _, inputs = lora.shapes()["mlp.up_proj"]
    files = with_tensor("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", [4, inputs + 8])
    message = refused(http, "wrong-size", files)
    assert f"layers.0.mlp.up_proj.lora_A is [4, {inputs + 8}]" in message and f"[4, {inputs}]" in message
    assert MODEL in message and "Nothing was stored." in message


def test_a_tensor_that_binds_to_nothing_is_named(http):
    message = refused(http, "unbound", with_tensor("base_model.model.model.layers.77.self_attn.q_proj.lora_A.weight", [4, 8]))
    assert "layers.77.self_attn.q_proj" in message


def test_a_tensor_that_is_not_a_number_is_named(http):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    outputs, _ = lora.shapes()["self_attn.q_proj"]
    message = refused(http, "nan", with_tensor(name, [outputs, 4], float("nan")))
    assert "layers.0.self_attn.q_proj.lora_B" in message


def broken_files() -> dict[str, lora.Files]:
    good = lora.adapter(9)
    weights = good["adapter_model.safetensors"]
    return {
        "cut": good | {"adapter_model.safetensors": weights[:-10]},
        "header-too-long": good | {"adapter_model.safetensors": b"\xff" * 8 + weights[8:]},
        "no-weights": {"adapter_config.json": good["adapter_config.json"]},
        "no-config": {"adapter_model.safetensors": weights},
        "config-is-no-json": good | {"adapter_config.json": b"{"},
        "rank-disagrees": rewritten(good, r=8),
        "another-kind": rewritten(good, peft_type="PREFIX_TUNING"),
    }


@pytest.mark.parametrize(
    "kind", ["cut", "header-too-long", "no-weights", "no-config", "config-is-no-json", "rank-disagrees", "another-kind"]
)
def test_broken_files_are_refused(http, kind):
    assert "othing was stored" in refused(http, f"broken-{kind}", broken_files()[kind])


def test_an_adapter_of_zeros_is_said_to_do_nothing(http):
    good = lora.adapter(10)
    size = int.from_bytes(good["adapter_model.safetensors"][:8], "little") + 8
    header, data = good["adapter_model.safetensors"][:size], good["adapter_model.safetensors"][size:]
    reply = upload(http, "zeros", good | {"adapter_model.safetensors": header + bytes(len(data))})
    assert reply.status_code == 422 or reply.json()["warnings"], reply.text


def test_an_adapter_that_overflows_is_refused_and_its_neighbours_live(http, client):
    every_linear = lora.adapter(13, linears=tuple(lora.shapes()))
    message = refused(http, "overflowing", rewritten(every_linear, lora_alpha=1e30))
    assert "lora_alpha" in message and message.endswith("Nothing was stored.")
    assert answer(client, MODEL)


def test_an_overflow_that_the_canary_did_not_meet_is_no_overload(http, client, server):
    """Its template keeps the canary's words from it, so it is met by who asks."""
    every_linear = rewritten(lora.adapter(16, linears=tuple(lora.shapes())), lora_alpha=1e30)
    reply = upload(http, "met-later", every_linear | {"chat_template.jinja": b"{{ '' }}"})
    assert reply.is_success, reply.text
    before = len(server.rows())
    for stream in (False, True):
        with pytest.raises((openai.InternalServerError, openai.APIError)) as failed:
            list(client.completions.create(model="met-later", prompt="The lantern is", max_tokens=4, stream=stream))
        assert (failed.value.code, failed.value.type) == ("logits_overflow", "server_error") and "lora_alpha" in str(failed.value)
    assert len(server.rows()) == before + 2, "the client tried again"
    raw = http.post("/v1/completions", json={"model": "met-later", "prompt": "The lantern is"})
    assert (raw.status_code, raw.headers["x-should-retry"]) == (500, "false") and "retry-after" not in raw.headers
    rows = [row for row in server.rows() if row["model"] == "met-later"]
    assert {(row["finish"], row["cost_nano_usd"]) for row in rows} == {("error", 0)}
    assert answer(client, MODEL)


def test_an_adapter_with_no_scale_is_told_so(http):
    reply = upload(http, "scale-zero", rewritten(lora.adapter(14), lora_alpha=0))
    assert reply.is_success and any("lora_alpha" in warning for warning in reply.json()["warnings"]), reply.text


@pytest.mark.parametrize("name", ["Upper", "a b", "..", "x" * 300, "@1"])
def test_a_name_that_cannot_be_typed_is_refused(http, name):
    assert upload(http, quote(name, safe=""), lora.adapter(11)).status_code in (400, 404, 422)


def test_a_base_models_name_is_not_for_adapters(http, client):
    reply = upload(http, MODEL, lora.adapter(15))
    assert reply.status_code == 409 and MODEL in reply.json()["error"]["message"], reply.text
    assert MODEL not in names(http)


def test_another_account_is_not_ours_to_write(http):
    reply = http.put("/v1/adapters/somebody/else", files=lora.parts(lora.adapter(12)))
    assert reply.status_code in (403, 404), reply.text


def test_the_files_come_back_as_they_were_sent(http):
    """Download gives what was uploaded, not what was made of it."""
    reply = http.get("/v1/adapters/local/support/download")
    assert reply.is_success, reply.text
    sent = {path.name: path.read_bytes() for path in (MODEL_FOLDER / "adapters/support").iterdir() if path.suffix != ".md"}
    with tarfile.open(fileobj=io.BytesIO(reply.content)) as archive:
        came = {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isfile()}
    assert came == sent


def test_vllm_names_for_push_and_delete(http, client, tmp_path):
    folder = MODEL_FOLDER / "adapters/support"
    load = {"lora_name": "from-disk", "lora_path": str(folder)}
    loaded = http.post("/v1/load_lora_adapter", json=load)
    assert loaded.status_code == 200 and "from-disk" in loaded.text and "success" in loaded.text.lower()
    assert answer(client, "from-disk") == answer(client, "support")
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "from-disk"}).status_code == 200
    with pytest.raises(openai.NotFoundError):
        answer(client, "from-disk")
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "from-disk"}).status_code == 404
    missing = http.post("/v1/load_lora_adapter", json=load | {"lora_path": str(tmp_path / "nothing")})
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "lora_path"
    assert http.post("/v1/load_lora_adapter", json={"lora_path": str(folder)}).json()["error"]["param"] == "lora_name"
