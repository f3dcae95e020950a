"""LangChain's ChatOpenAI, as its documentation says to use it."""

import asyncio

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from server import KEY, MODEL, PATIENCE_S

QUESTION = [SystemMessage("You are a helpful assistant."), HumanMessage("Where is my order?")]


@pytest.fixture
def chat(server):
    def make(**options) -> ChatOpenAI:
        defaults = {"model": MODEL, "temperature": 0, "max_tokens": 16, "max_retries": 0, "timeout": PATIENCE_S}
        return ChatOpenAI(base_url=server.base_url, api_key=KEY, **defaults | options)

    return make


def test_invoke_gives_text_and_usage(chat):
    reply = chat().invoke(QUESTION)
    assert reply.content
    usage = reply.usage_metadata
    assert usage["input_tokens"] > 0 and usage["output_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert reply.response_metadata["finish_reason"] in ("stop", "length")
    assert reply.response_metadata["model_name"] == MODEL and reply.response_metadata["system_fingerprint"]


def test_stream_adds_up_to_invoke(chat):
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    whole = sum(chunks[1:], chunks[0])
    assert isinstance(whole, AIMessageChunk)
    expected = chat().invoke(QUESTION)
    assert whole.content == expected.content
    assert {name: whole.usage_metadata[name] for name in ("input_tokens", "output_tokens")} == {
        name: expected.usage_metadata[name] for name in ("input_tokens", "output_tokens")
    }
    assert whole.response_metadata["finish_reason"] == expected.response_metadata["finish_reason"]


def test_no_usage_where_none_was_asked(chat):
    assert all(chunk.usage_metadata is None for chunk in chat(stream_usage=False).stream(QUESTION))


def test_batch_answers_in_order(chat):
    questions = ["Hello", "Where is my parcel?", "I want a refund", "Thanks"]
    model = chat(model="support")
    assert [reply.content for reply in model.batch(questions)] == [model.invoke(question).content for question in questions]


def test_async_says_the_same(chat):
    async def both() -> tuple[str, str]:
        invoked = await chat().ainvoke(QUESTION)
        streamed = [chunk.content async for chunk in chat().astream(QUESTION)]
        return invoked.content, "".join(streamed)

    invoked, streamed = asyncio.run(both())
    assert invoked == streamed == chat().invoke(QUESTION).content


def test_stop_seed_and_logprobs_pass_through(chat):
    text = chat(max_tokens=16).invoke(QUESTION).content
    stop = text[len(text) // 2 :][:4]
    assert chat().invoke(QUESTION, stop=[stop]).content == text[: text.index(stop)]
    drawn = [chat(temperature=1.3, seed=4).invoke(QUESTION).content for _ in range(2)]
    assert drawn[0] == drawn[1]
    logprobs = chat(logprobs=True, top_logprobs=2).invoke(QUESTION).response_metadata["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in logprobs)


class Purchase(BaseModel):
    """What somebody bought."""

    name: str = Field(max_length=12)
    item: str = Field(max_length=12)


@pytest.mark.parametrize("options", [{}, {"strict": True}])
def test_structured_output_is_the_callers_own_type(chat, options):
    model = chat(max_tokens=100).with_structured_output(Purchase, method="json_schema", **options)
    assert isinstance(model.invoke(QUESTION), Purchase)


def test_structured_output_holds_whatever_is_drawn(chat):
    for seed in range(4):
        model = chat(max_tokens=200, temperature=2.0, seed=seed).with_structured_output(Purchase, method="json_schema", include_raw=True)
        reply = model.invoke(QUESTION)
        assert reply["raw"].response_metadata["finish_reason"] == "stop" and reply["parsing_error"] is None
        assert isinstance(reply["parsed"], Purchase)


def test_errors_keep_their_type(chat):
    with pytest.raises(openai.NotFoundError, match="Did you mean"):
        chat(model="suport").invoke(QUESTION)
