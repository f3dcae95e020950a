"""The built-in model does through the product what its training script measured: held-out examples, greedy, whole answers."""

import json
import sys

import pytest

from server import MODEL, ROOT

sys.path.insert(0, str(ROOT / "models/training"))
import generate  # noqa: E402

EXAMPLES = 40


def as_sent(message: dict) -> dict:
    """The API takes a call's arguments as text."""
    calls = [call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
             for call in message.get("tool_calls", [])]
    return message | ({"tool_calls": [{"id": f"call_{i}", **call} for i, call in enumerate(calls)]} if calls else {})


def expected(message: dict) -> str:
    calls = (f'<tool_call>{json.dumps(call["function"])}</tool_call>' for call in message.get("tool_calls", []))
    return message["content"] + "".join(calls)


def right(http, model: str, task: str) -> float:
    count = 0
    for example in generate.held_out(task, EXAMPLES):
        *asked, answer = example["messages"]
        body = {"model": model, "messages": [as_sent(message) for message in asked], "temperature": 0, "max_tokens": 200}
        if "tools" in example:
            body["tools"] = example["tools"]
        reply = http.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]
        count += expected(as_sent(reply | {"content": reply["content"] or ""})) == expected(answer)
    return count / EXAMPLES


@pytest.mark.parametrize("task", generate.BASE_TASKS)
def test_the_base_answers_its_tasks(http, task):
    assert right(http, MODEL, task) >= 0.95


@pytest.mark.parametrize("task", generate.ADAPTER_TASKS)
def test_an_adapter_changes_the_answer_to_its_own(http, task):
    assert right(http, MODEL, task) < 0.2
    assert right(http, task, task) >= 0.95
