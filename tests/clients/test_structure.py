"""Answers of a given form: every spelling, whole and streamed, whatever is drawn; and what cannot be enforced is refused in words."""

import asyncio
import json
import re
from typing import Annotated, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from server import MODEL, MODEL_FOLDER, PATIENCE_S
from talk import PROMPT, ask, connect_async, text_of

EXTRACTION = [
    {"role": "user", "content": "Extract name, item as JSON: Anna from Oslo bought a lantern for 20 euros on Monday, order 1234."}
]


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    item: Literal["lantern", "lamp", "candle"]
    count: Annotated[int, Field(ge=1, le=99)]


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=12)]
    number: Annotated[str, Field(pattern=r"^[A-Z]{2}-[0-9]{4}$")]
    gift: bool | None
    lines: Annotated[list[Line], Field(min_length=1, max_length=3)]


class Purchase(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=12)]
    item: Annotated[str, Field(max_length=12)]


def schema(model: type[BaseModel], strict: bool = True) -> dict:
    named = {"name": model.__name__, "schema": model.model_json_schema()}
    return {"type": "json_schema", "json_schema": named | ({"strict": True} if strict else {})}


def of(schema: dict | bool, name: str = "answer", **more) -> dict:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema} | more}


def form(client: openai.OpenAI, response_format: dict | None = None, **options):
    """A chat completion of a given form; it may end where the form does."""
    wish = {} if response_format is None else {"response_format": response_format}
    return ask(client, **{"max_tokens": 200, "extra_body": {}} | wish | options)


def text(reply) -> str:
    [choice] = reply.choices
    assert choice.finish_reason == "stop", choice
    return choice.message.content


def essence(reply) -> list[tuple]:
    """What was drawn, and every bit of how probable it was."""
    return [
        (choice.index, choice.message.content, choice.finish_reason, [token.logprob for token in choice.logprobs.content])
        for choice in reply.choices
    ]


@pytest.mark.parametrize("strict", [True, False])
def test_a_schema_is_met(client, strict):
    order = Order.model_validate_json(text(form(client, schema(Order, strict))))
    assert order.lines


def test_parse_gives_the_callers_own_type(client):
    reply = client.chat.completions.parse(
        model=MODEL, messages=EXTRACTION, response_format=Purchase, temperature=0, max_tokens=200
    )
    [choice] = reply.choices
    assert isinstance(choice.message.parsed, Purchase) and choice.message.refusal is None
    assert choice.message.parsed == Purchase.model_validate_json(choice.message.content)


@pytest.mark.parametrize("response_format", [schema(Purchase), {"type": "json_object"}], ids=["json_schema", "json_object"])
def test_what_the_model_knows_shows_through_the_form(client, response_format):
    plain = json.loads(text(form(client, messages=EXTRACTION)))
    assert plain == {"name": "Anna", "item": "lantern"}
    assert json.loads(text(form(client, response_format, messages=EXTRACTION))) == plain


def test_the_clients_own_stream_of_a_form_parses(client):
    options = {"model": MODEL, "messages": PROMPT, "temperature": 1.0, "seed": 4, "max_tokens": 200}
    with client.chat.completions.stream(**options, response_format=Order) as events:
        contents = [event.delta for event in events if event.type == "content.delta"]
        streamed = events.get_final_completion().choices[0].message
    whole = client.chat.completions.parse(**options, response_format=Order).choices[0].message
    assert streamed.parsed == whole.parsed and isinstance(whole.parsed, Order)
    assert "".join(contents) == whole.content


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_deltas_add_up_to_the_document(client, temperature):
    options = {"temperature": temperature, "seed": 7}
    whole = text(form(client, schema(Order), **options))
    chunks = list(form(client, schema(Order), stream=True, **options))
    assert text_of(chunks) == whole and len(chunks) > 5
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]


@pytest.mark.parametrize("response_format", [schema(Order), schema(Order, strict=False)], ids=["strict", "not strict"])
def test_whatever_is_drawn_the_document_is_valid(client, response_format):
    finished = 0
    for seed in range(12):
        reply = form(client, response_format, temperature=2.0, seed=seed, max_tokens=160)
        [choice] = reply.choices
        if choice.finish_reason == "stop":
            Order.model_validate_json(choice.message.content)
            finished += 1
        else:
            assert choice.finish_reason == "length" and reply.usage.completion_tokens == 160
    assert finished > 6


DRAWN = [
    ({"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 12, "multipleOf": 3}, "minItems": 2, "maxItems": 4},
     list[Annotated[int, Field(ge=-3, le=12, multiple_of=3)]]),
    ({"anyOf": [{"type": "null"}, {"type": "boolean"}, {"const": "maybe"}]}, bool | None | Literal["maybe"]),
    ({"type": "string", "minLength": 3, "maxLength": 8}, Annotated[str, Field(min_length=3, max_length=8)]),
    ({"type": "object", "additionalProperties": {"type": "boolean"}, "propertyNames": {"pattern": "^[a-z]{1,3}$"}, "maxProperties": 1},
     dict[Annotated[str, Field(pattern="^[a-z]{1,3}$")], bool]),
    ({"type": "string", "format": "date"}, Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]),
    ({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}}, list),
]


@pytest.mark.parametrize(("wanted", "kind"), DRAWN, ids=["numbers", "union", "string", "names", "format", "recursion"])
def test_keywords_hold_at_a_high_temperature(client, wanted, kind):
    finished = 0
    for seed in range(6):
        [choice] = form(client, of(wanted), temperature=2.0, seed=seed, max_tokens=96).choices
        if choice.finish_reason == "stop":
            TypeAdapter(kind).validate_json(choice.message.content, strict=True)
            finished += 1
        else:
            assert choice.finish_reason == "length"
    assert finished > 1


def test_properties_come_in_the_schemas_order(client):
    properties = {"z": {"enum": ["p", "q"]}, "a": {"type": "boolean"}, "m": {"type": "array", "items": {"const": "x"}, "minItems": 2, "maxItems": 2}}
    wanted = {"type": "object", "properties": properties, "required": ["a", "m", "z"], "additionalProperties": False}
    for seed in range(4):
        answer = text(form(client, of(wanted), temperature=2.0, seed=seed))
        assert list(json.loads(answer)) == ["z", "a", "m"]
        assert re.fullmatch(r'\{"z": ?"[pq]", ?"a": ?(true|false), ?"m": ?\["x", ?"x"\]\}', answer), "no blanks but one behind a comma or colon"


def test_json_object_is_an_object(client):
    finished = 0
    for seed in range(12):
        [choice] = form(client, {"type": "json_object"}, temperature=1.5, seed=seed).choices
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
            finished += 1
    assert finished > 2


def test_text_is_no_form(client):
    assert form(client, {"type": "text"}).choices[0].message.content == form(client).choices[0].message.content


GBNF = 'root ::= pair ("," pair)?\npair ::= [a-c]{1,2} "=" [0-9]{1,3}\n'
NESTED_GBNF = 'root ::= "(" (root | [0-9]) ")"\n'
LARK = 'start: color ("," color)? "!"\ncolor: "red" | "green" | "blue"\n'
PAIRS = r"[a-c]{1,2}=[0-9]{1,3}(,[a-c]{1,2}=[0-9]{1,3})?"
COLORS = r"(red|green|blue)(,(red|green|blue))?!"
# What each asks for as a field of vLLM's; what is asked of the text as a pattern.
SPELLINGS = [
    ({"guided_json": Line.model_json_schema()}, Line),
    ({"guided_json": json.dumps(Line.model_json_schema())}, Line),
    ({"guided_regex": "(yes|no) [0-9]{2}"}, "(yes|no) [0-9]{2}"),
    ({"guided_choice": ["refund", "delivery", "a new lamp"]}, "refund|delivery|a new lamp"),
    ({"guided_grammar": GBNF}, PAIRS),
    ({"guided_grammar": NESTED_GBNF}, r"\(+[0-9]\)+"),
    ({"guided_grammar": LARK}, COLORS),
    ({"structured_outputs": {"json": Line.model_json_schema()}}, Line),
    ({"structured_outputs": {"regex": "[a-f]{4}"}}, "[a-f]{4}"),
    ({"structured_outputs": {"choice": ["one", "two"]}}, "one|two"),
    ({"structured_outputs": {"grammar": LARK}}, COLORS),
    ({"response_format": {"type": "grammar", "grammar": GBNF}}, PAIRS),
    ({"response_format": {"type": "regex", "regex": "[0-9]{3}"}}, "[0-9]{3}"),
    ({"response_format": {"type": "choice", "choices": ["one", "two"]}}, "one|two"),
    ({"response_format": {"type": "json_object", "schema": Line.model_json_schema()}}, Line),
]


def fits(answer: str, wanted) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, answer) is not None
    return wanted.model_validate_json(answer) is not None


@pytest.mark.parametrize(("wish", "wanted"), SPELLINGS)
def test_every_spelling_is_kept_to(client, wish, wanted):
    """At both endpoints, whatever is drawn."""
    for options in ({"temperature": 0}, {"temperature": 2.0, "seed": 1}, {"temperature": 2.0, "seed": 2}):
        answer = text(form(client, extra_body=wish, max_tokens=64, **options))
        assert fits(answer, wanted), answer
    [choice] = client.completions.create(
        model=MODEL, prompt="The answer is", temperature=1.0, seed=3, max_tokens=64, extra_body=wish
    ).choices
    assert choice.finish_reason == "stop" and fits(choice.text, wanted), choice


def test_text_completions_stream_many_prompts_in_one_form(lenient_client):
    options = {
        "model": MODEL, "prompt": ["The first is", "The second is"], "n": 2, "temperature": 1.5, "seed": 2, "max_tokens": 32,
        "extra_body": {"guided_regex": "[a-z]{3,9}[.]"},
    }
    whole = [choice.text for choice in lenient_client.completions.create(**options).choices]
    assert len(whole) == 4 and all(re.fullmatch("[a-z]{3,9}[.]", answer) for answer in whole)
    streamed = dict.fromkeys(range(4), "")
    for chunk in lenient_client.completions.create(stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert list(streamed.values()) == whole


def test_an_answer_that_is_cut_says_so(client):
    whole = text(form(client, schema(Order)))
    cut = form(client, schema(Order), max_tokens=5)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 5
    assert whole.startswith(cut.choices[0].message.content) and cut.choices[0].message.content != whole
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=PROMPT, response_format=Order, max_tokens=5)


def test_an_answer_ends_where_its_form_does(client):
    """Neither a wish to go on nor one to stop at once changes what the form says."""
    plain = form(client, schema(Line))
    for options in ({"ignore_eos": True}, {"min_tokens": 100}):
        other = form(client, schema(Line), extra_body=options)
        assert text(other) == text(plain) and other.usage.completion_tokens == plain.usage.completion_tokens


def test_choices_are_valid_each(client):
    options = {"n": 3, "temperature": 2.0, "seed": 5, "logprobs": True}
    reply = form(client, schema(Line), **options)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert all(choice.finish_reason == "stop" for choice in reply.choices)
    assert len({Line.model_validate_json(choice.message.content).model_dump_json() for choice in reply.choices}) > 1
    assert reply.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in reply.choices)


def test_logprobs_are_of_the_tokens_of_the_document(client):
    [choice] = form(client, schema(Order), logprobs=True, top_logprobs=4, temperature=1.0, seed=2).choices
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 4 for token in tokens)
    plain = form(client, logprobs=True, top_logprobs=4).choices[0].logprobs.content[0].top_logprobs
    assert tokens[0].top_logprobs == plain, "they are the model's own, of all tokens, before the form has its say"


def test_what_is_generated_is_counted(server, client):
    reply = form(client, schema(Line), logprobs=True)
    count = len(reply.choices[0].logprobs.content)
    assert reply.usage.completion_tokens == count and server.row(reply.id)["completion_tokens"] == count
    *_, last = form(client, schema(Line), stream=True, stream_options={"include_usage": True})
    assert last.usage == reply.usage.model_copy(update={"prompt_tokens_details": last.usage.prompt_tokens_details})


def test_a_seed_draws_the_same_document(client):
    def draw(seed: int):
        return essence(form(client, schema(Order), temperature=1.5, seed=seed, logprobs=True))

    first = [draw(seed) for seed in range(5)]
    assert first == [draw(seed) for seed in range(5)]
    assert len({answer for [(_, answer, _, _)] in first}) > 1


def test_a_cached_prompt_changes_nothing(client):
    messages = [{"role": "user", "content": "Write down the order of the blue lamp. " * 12}]
    options = {"messages": messages, "temperature": 1.0, "seed": 3, "logprobs": True}
    first, again = (form(client, schema(Order), **options) for _ in range(2))
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert essence(again) == essence(first)


@pytest.mark.parametrize("adapter", ["support", "extract", "sql"])
def test_adapters_keep_to_the_form(client, adapter):
    for seed in range(3):
        Line.model_validate_json(text(form(client, schema(Line), model=adapter, temperature=2.0, seed=seed)))
    reply = form(client, model=adapter, extra_body={"guided_choice": ["lamp", "lantern"]})
    assert text(reply) in ("lamp", "lantern")


def test_penalties_and_narrow_draws_choose_among_what_may_come(client):
    many = {"frequency_penalty": 2.0, "presence_penalty": 2.0, "temperature": 1.0, "seed": 1}
    assert fits(text(form(client, **many, extra_body={"guided_regex": "a{20}", "repetition_penalty": 1.9})), "a{20}")
    for extra in ({"top_k": 1}, {"top_k": 2, "min_p": 0.9}, {"top_p": 1e-6}):
        answer = text(form(client, temperature=2.0, seed=1, extra_body={"guided_regex": "[x-z]{6}"} | extra))
        assert re.fullmatch("[x-z]{6}", answer)


def test_a_bias_cannot_leave_the_form(client):
    bias = {str(token): 100 for token in range(3, 60)}
    assert text(form(client, logit_bias=bias, extra_body={"guided_regex": "(left|right)"})) in ("left", "right")


def test_a_stop_string_cuts_the_document(client):
    wish = {"guided_regex": "(red|green|blue)-[0-9]{4}"}
    whole = form(client, extra_body=wish)
    cut = form(client, extra_body=wish, stop="-")
    assert text(cut) == text(whole).split("-")[0]
    assert cut.usage.completion_tokens < whole.usage.completion_tokens
    assert text_of(form(client, extra_body=wish, stop="-", stream=True)) == text(cut)


def test_24_forms_at_once_change_no_neighbour(server, client):
    def request(number: int) -> dict:
        options = {"messages": [{"role": "user", "content": f"Order {number}, please."}], "temperature": 1.2, "seed": number}
        options |= {"max_tokens": 48, "logprobs": True, "model": [MODEL, "support", "extract"][number % 3], "extra_body": {}}
        if number % 2:
            return options
        wanted = {"type": "object", "properties": {f"order_{number}": {"type": "integer", "minimum": 0, "maximum": number}}}
        return options | {"response_format": of(wanted | {"required": [f"order_{number}"], "additionalProperties": False})}

    async def together() -> list:
        async with connect_async(server) as crowd:
            return await asyncio.gather(*(ask(crowd, **request(number)) for number in range(48)))

    replies = asyncio.run(together())
    for number in range(0, 48, 2):
        assert 0 <= json.loads(text(replies[number]))[f"order_{number}"] <= number
    assert [essence(reply) for reply in replies] == [essence(ask(client, **request(number))) for number in range(48)]


def object_of(properties: dict, required: list[str], **more) -> dict:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False} | more


STRICT = [
    (
        {"type": "object", "properties": {}},
        "Invalid schema for response_format 'answer': In context=(), 'additionalProperties' is required to be supplied and to be false.",
    ),
    (
        object_of({"y": {"type": "string"}, "z": {"type": "string"}}, ["y"]),
        "Invalid schema for response_format 'answer': In context=(), 'required' is required to be supplied and to be an array "
        "including every key in properties. Missing 'z'.",
    ),
    (
        object_of({"y": {"oneOf": [{"type": "string"}]}}, ["y"]),
        "Invalid schema for response_format 'answer': In context=('properties', 'y'), 'oneOf' is not permitted.",
    ),
    (
        {"type": "array", "items": {"type": "string"}},
        "Invalid schema for response_format 'answer': schema must be a JSON Schema of 'type: \"object\"', got 'type: \"array\"'.",
    ),
]


@pytest.mark.parametrize(("wanted", "message"), STRICT)
def test_strict_mode_refuses_in_the_known_words(client, wanted, message):
    with pytest.raises(openai.BadRequestError) as caught:
        form(client, of(wanted, strict=True))
    assert caught.value.body["message"] == message
    assert caught.value.param == "response_format" and caught.value.type == "invalid_request_error"


def schema_wish(wanted) -> dict:
    return {"response_format": of(wanted)}


REFUSED = [
    (
        schema_wish({"properties": {"a/b": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}}),
        "response_format", ["Invalid schema for response_format 'answer'", "'uniqueItems'"],
    ),
    (
        schema_wish({"type": "object", "properties": {"who": {"type": "string", "pattern": r"(a)\1"}}}),
        "response_format", ["'/properties/who'", "'pattern'", r"(a)\1"],
    ),
    (schema_wish({"items": {"$ref": "https://example.com/x"}}), "response_format", ["'/items'", "'$ref'", "$defs"]),
    (schema_wish({"type": "strnig"}), "response_format", ["'/'", "'type'", "'strnig' is unknown"]),
    (schema_wish(False), "response_format", ["no document can satisfy this schema"]),
    (schema_wish({"type": "integer", "minimum": 3, "maximum": 2}), "response_format", ["no document can satisfy this schema"]),
    (
        schema_wish({"$ref": "#/$defs/a", "$defs": {"a": object_of({"a": {"$ref": "#/$defs/a"}}, ["a"])}}),
        "response_format", ["no document can satisfy this schema"],
    ),
    ({"guided_regex": "(a"}, "guided_regex", ["Invalid grammar for guided_regex", "regular expression"]),
    ({"guided_regex": r"(a)\1"}, "guided_regex", ["Invalid grammar for guided_regex"]),
    ({"guided_choice": []}, "guided_choice", ["there is nothing to choose from"]),
    ({"guided_choice": "lamp"}, "guided_choice", ["must be a list of strings"]),
    ({"guided_grammar": "root ::= other"}, "guided_grammar", ["the rule 'other' is used and not defined"]),
    ({"guided_grammar": "start: other"}, "guided_grammar", ["other"]),
    ({"guided_json": "{"}, "guided_json", ["must be a JSON Schema"]),
    ({"response_format": {"type": "yaml"}}, "response_format", ["type must be text, json_object, json_schema"]),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", ["is missing"]),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", ["only one of guided_regex, guided_choice"]),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", ["response_format, guided_regex"]),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", ["takes one of json, regex, choice"]),
]


@pytest.mark.parametrize(("wish", "param", "words"), REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(server, client, wish, param, words):
    before = len(server.rows())
    with pytest.raises(openai.BadRequestError) as caught:
        form(client, extra_body=wish)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"
    assert all(word in caught.value.body["message"] for word in words), caught.value.body["message"]
    assert len(server.rows()) == before, "nothing is opened for it"


def test_a_refusal_of_an_inner_array_names_its_place(client):
    with pytest.raises(openai.BadRequestError, match="'/properties/a~1b'"):
        form(client, of({"properties": {"a/b": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}}))


HOSTILE = {
    "nesting": {"guided_json": json.loads('{"items":' * 100 + "{}" + "}" * 100)},
    "cases": {"guided_json": {"allOf": [{"anyOf": [{"required": [f"a{at}"]}, {"required": [f"b{at}"]}]} for at in range(40)]}},
    "overlaps": {"guided_json": {"oneOf": [{"properties": {f"p{at}": {"type": "integer"}}} for at in range(400)]}},
    "numbers": {"guided_json": {"type": "integer", "allOf": [{"not": {"multipleOf": 2 * at + 3}} for at in range(60)]}},
    "names": {"guided_json": {"type": "object", "patternProperties": {f"^.*x{at}.*y.*$": {"type": "integer"} for at in range(12)}}},
    "size": {"guided_json": {"properties": {f"p{at}" * 40: {"enum": [str(at)] * 9} for at in range(6000)}}},
    "brackets": {"guided_regex": "(" * 5000 + ")" * 5000},
    "choices": {"guided_choice": [str(at) for at in range(5000)]},
    "grammar": {"guided_grammar": "root ::= " + "(" * 500 + '"a"' + ")" * 500},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_is_refused_in_time(client, name):
    """Bounded work, far below what a client waits, and the server serves on."""
    with pytest.raises(openai.BadRequestError) as caught:
        form(client.with_options(timeout=PATIENCE_S / 6), extra_body=HOSTILE[name])
    assert caught.value.param == next(iter(HOSTILE[name]))
    assert text(form(client, extra_body={"guided_choice": ["still here"]})) == "still here"


def test_an_ambiguous_grammar_ends_its_own_answer_and_nobody_elses(client):
    """Each token takes longer than the one before; alone, 400 of them would take ten seconds."""
    letter = json.loads((MODEL_FOLDER / "tokenizer.json").read_text())["model"]["vocab"]["a"]
    grammar = 'root ::= x\nx ::= x x | "a" x "b" | "a"'
    with pytest.raises(openai.APIStatusError) as caught:
        form(client, max_tokens=1500, extra_body={"guided_grammar": grammar}, logit_bias={str(letter): 60})
    assert caught.value.status_code == 422 and caught.value.code == "grammar_limit"
    assert text(form(client, extra_body={"guided_choice": ["still here"]})) == "still here"
