"""Writes fixtures/templates.json: chat templates, conversations, and what transformers' own renderer makes of them; and what its
tokenizer and renderer make of the built-in model's folder. Run again when models/myriad-mini has changed.

The templates are written for this test, in the manners that published ones have: whitespace control, macros, namespaces, loop
controls, tools as JSON, dates, refusals, Python's string methods.
"""

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import transformers.utils.chat_template_utils as renderer
from transformers import AutoTokenizer

HERE = Path(__file__).parent
MINI = HERE.parents[1] / "models/myriad-mini"
NOW = 1_000_000_000
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  Hello there.\n"}, {"role": "user", "content": "Why? <b>&\"'é😀"}]
WITH_SYSTEM = [{"role": "system", "content": " Be brief.\nBe kind. "}, *TALK]
TWICE = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
CALLS = [
    {"role": "user", "content": "Weather in Oslo and Rome?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2, "exact": True}}},
        {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "near": None}}}]},
    {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "{\"c\": 3.0}"},
    {"role": "tool", "tool_call_id": "call_2", "name": "weather", "content": "21"},
    {"role": "assistant", "content": "<think>\nOslo is cold.\n</think>\n\nTake a coat."},
    {"role": "user", "content": "Thanks"},
]
TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "Weather of a city, in °C & <more>",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Its \"name\""}, "days": {"type": "integer", "default": 1, "minimum": 0.5},
        "exact": {"type": "boolean"}, "kinds": {"type": "array", "items": {"enum": ["a", "b", None]}}, "none": {}}}}}]

TEMPLATES = {
    "turns": "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    "lines": """{{ bos_token }}
{% for m in messages %}
    {% if m.role == 'user' %}
[USER] {{ m.content | trim }} [/USER]
    {% elif m.role == 'assistant' %}
 {{ m.content.strip() }}{{ eos_token }}
    {% else %}
        {{- raise_exception('Only user and assistant may speak, not ' ~ m.role) }}
    {% endif %}
{% endfor %}
""",
    "alternating": """{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for m in rest -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception("Roles must alternate user/assistant/user/assistant/...") -}}
    {%- endif -%}
    {%- if m['role'] == 'user' -%}
        {%- if loop.last and system is defined -%}
            {{- '[INST] ' + system + '\\n\\n' + m['content'] + '[/INST]' -}}
        {%- else -%}
            {{- '[INST] ' + m['content'] + '[/INST]' -}}
        {%- endif -%}
    {%- else -%}
        {{- ' ' + m['content'] | trim + eos_token -}}
    {%- endif -%}
{%- endfor -%}
""",
    "dated-tools": """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|system|>\\nToday: " + date_string + "\\n\\n" }}
{%- if tools is not none and tools %}
    {{- "Functions:\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|end|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|' + message['role'] + '|>\\n\\n' + message['content'] | trim + '<|end|>' }}
    {%- elif 'tool_calls' in message %}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "parameters": ' + (call.function.arguments | tojson) + '}' }}
            {%- if not loop.last %}{{ '; ' }}{% endif %}
        {%- endfor %}
    {%- else %}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n\\n' }}{% endif %}
""",
    "thinking": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(tail=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.tail and message.role == "user" and message.content is string and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.tail = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and thought %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "macros": """{%- macro kind(spec, depth=0) -%}
    {%- if spec.type == 'array' -%}{{ kind(spec['items'] or {}, depth + 1) }}[]
    {%- elif spec.enum is defined -%}{{ spec.enum | map('string') | join('|') }}
    {%- else -%}{{ spec.type | default('any') }}{{ ' = ' ~ spec.default if spec.default is defined }}{%- endif -%}
{%- endmacro -%}
{% for tool in tools or [] %}
def {{ tool.function.name }}({% for name, spec in tool.function.parameters.properties.items() %}{{ name }}: {{ kind(spec) }}{{ ', ' if not loop.last }}{% endfor %})
{%+ if tool.function.description %}# {{ tool.function.description | upper | replace('&', 'and') }}{% endif %}

{% endfor %}
{% for m in messages if m.content %}
{{ loop.index }}/{{ loop.length }} {{ m.role | capitalize }}: {{ (m.content | string)[:12] }}{{ '…' if m.content | length > 12 }}
{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} of {{ messages | length }}; {{ messages | map(attribute='role') | join(',') }}
""",
    "parts": """{%- for m in messages %}{{ m.role }}:
{%- if m.content is string %} {{ m.content }}
{%- else %}{% for part in m.content or [] if part.type == 'text' %} {{ part['text'] }}{% endfor %}
{%- endif %}
{# a comment goes #}
{% endfor %}end{{ ' of it' if add_generation_prompt else '' }}""",
    "generation": """{% for m in messages %}
{% if m.role == 'assistant' %}
{{ '<a>' }}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}

{%-   generation   -%}  again {%-endgeneration-%}
{% else %}
<u>{{ m.content }}
{% endif %}
{% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}""",
    "python": """{{ messages[-1]['content'].split()[0].lower() }}|{{ messages[0].get('name', 'nobody') }}|{{ messages[0].content.title() }}
{{ "%s is %d" | format('x', 3) }}|{{ 'a,b,,c'.split(',') | length }}|{{ ' x '.lstrip() }}|{{ 'abc'.find('c') }}|{{ 7 // 2 }}|{{ 7 / 2 }}|{{ 2 ** 5 }}
{% set d = {'b': 1, 'a': [1, 2.5, 1e20, true, none]} %}{{ d | tojson }}{{ d | tojson(sort_keys=true) }}{{ d.a[0] }}{{ 'b' in d }}
{{ d.items() | list | length }}{{ d.keys() | list | join('-') }}{{ 'x' ~ 1 ~ true }}{{ none is none }}{{ undefined_name is defined }}
{{ [3, 1, 2] | sort | join }}{{ [1, 2, 3] | last }}{{ range(3) | list | join('+') }}{{ 'é"' | tojson(ensure_ascii=true) }}""",
    "separators": "{{ tools | tojson(separators=(',', ':')) }}",
    "empty": "",
}
CONVERSATIONS = {
    "talk": {"messages": TALK}, "system": {"messages": WITH_SYSTEM}, "twice": {"messages": TWICE}, "parts": {"messages": PARTS},
    "calls": {"messages": CALLS, "tools": TOOLS}, "tools": {"messages": TALK, "tools": TOOLS},
    "extra": {"messages": TALK, "extra": {"enable_thinking": False, "date_string": "1 May"}},
}


class Frozen(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromtimestamp(NOW, timezone.utc)


def rendered(source: str, conversation: dict, prompt: bool) -> dict:
    try:
        texts, _ = renderer.render_jinja_template(
            [conversation["messages"]], tools=conversation.get("tools"), chat_template=source, add_generation_prompt=prompt,
            **SPECIAL, **conversation.get("extra", {}))
        return {"text": texts[0]}
    except Exception as error:  # what a template raises, or what it does wrong
        return {"error": str(error)}


def mini() -> list[dict]:
    """Every kind of conversation that the model was made for, with its tokens."""
    sys.path.insert(0, str(MINI.parent / "training"))
    import generate

    tokenizer = AutoTokenizer.from_pretrained(MINI)
    cases = []
    for task in generate.TASKS:
        for example in generate.held_out(task, 4):
            conversation = {"messages": example["messages"][:-1], "tools": example.get("tools")}
            options = {"tools": conversation["tools"], "add_generation_prompt": True}
            cases.append(conversation | {
                "text": tokenizer.apply_chat_template(conversation["messages"], tokenize=False, **options),
                "tokens": tokenizer.apply_chat_template(conversation["messages"], return_dict=False, **options)})
    return cases


def main() -> None:
    renderer.datetime = Frozen
    cases = [
        {"template": template, "conversation": name, "add_generation_prompt": prompt} | rendered(source, conversation, prompt)
        for template, source in TEMPLATES.items() for name, conversation in CONVERSATIONS.items() for prompt in (True, False)]
    errors = [case for case in cases if "error" in case]
    print(f"{len(cases)} cases, {len(errors)} of them errors:", *sorted({f"{e['template']}: {e['error']}" for e in errors}), sep="\n  ")
    written = {"now": NOW, "special": SPECIAL, "templates": TEMPLATES, "conversations": CONVERSATIONS, "cases": cases, "mini": mini()}
    (HERE / "fixtures/templates.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
