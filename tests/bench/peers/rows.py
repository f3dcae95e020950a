"""What is measured, and with which engine."""

from dataclasses import dataclass

from shape import ADAPTERS, MIXED


@dataclass(frozen=True)
class Row:
    """`requests` at the same time, request n with adapter n modulo `adapters`; the rate counts prompt or generated tokens."""

    name: str
    requests: int
    adapters: tuple[str, ...] = ()
    prompt_tokens: int = 4
    output_tokens: int = 32
    repeats: int = 1
    group: str = "table"

    @property
    def prefill(self) -> bool:
        return self.output_tokens == 1

    def assigned(self) -> list[str | None]:
        return [self.adapters[number % len(self.adapters)] if self.adapters else None for number in range(self.requests)]

    def tokens(self) -> int:
        return self.prompt_tokens if self.prefill else self.requests * self.output_tokens


def decode(requests: int, kind: str, adapters: tuple[str, ...] = (), group: str = "table", repeats: int = 1) -> Row:
    return Row(f"decode-{requests}-{kind}", requests, adapters, output_tokens={1: 96, 8: 48}.get(requests, 32), group=group, repeats=repeats)


# Prompts of four tokens, so that the prompt is a small part of a decode row, and the same part for everybody.
ROWS = [
    decode(1, "none"),
    decode(8, "none"),
    decode(32, "none"),
    decode(1, "shared", (ADAPTERS[0],)),
    decode(8, "shared", (ADAPTERS[0],)),
    decode(32, "shared", (ADAPTERS[0],)),
    decode(8, "distinct", tuple(ADAPTERS[:8])),
    decode(32, "distinct", tuple(ADAPTERS)),
    Row("prompt-512", 1, prompt_tokens=512, output_tokens=1, repeats=2),
    Row("prompt-2048", 1, prompt_tokens=2048, output_tokens=1),
    *[decode(32, f"{count}-adapters", tuple(ADAPTERS[:count]), group="plot") for count in (2, 4, 8, 16)],
    # Two adapters of each of the ranks 8, 16, 32 and 64.
    decode(8, "mixed-ranks", tuple(MIXED), group="own"),
    # Time to first token of a short prompt on an idle server; the rate's inverse times 16.
    Row("prompt-16", 1, prompt_tokens=16, output_tokens=1, repeats=5, group="own"),
]
# One after the other on its page of the plot: distinct adapters among 32 requests.
PLOT = {0: "decode-32-none", 1: "decode-32-shared", **{n: f"decode-32-{n}-adapters" for n in (2, 4, 8, 16)}, 32: "decode-32-distinct"}

EIGHT_BIT = ("myriad-int8", "llama.cpp-q8_0", "openvino-int8")
# Far from the front and slow to measure: in the first round only.
ONCE = ("transformers-bf16", "mistral.rs-f32")


def of(peer: str, quick: bool) -> list[Row]:
    """The rows that say something about a peer."""
    ours, plotted = peer.startswith("myriad"), peer in ("myriad-bf16", "llama.cpp-bf16")

    def wanted(row: Row) -> bool:
        if row.group == "own":
            return ours and not quick
        if row.group == "plot":
            return plotted and not quick
        if peer in EIGHT_BIT and not ours:
            return not row.adapters
        if row.name == "decode-32-distinct":
            # One call for each adapter: 32 requests take four times as long as 8 and show the same rate.
            return peer not in ("openvino-bf16", *ONCE) and not (quick and peer != "llama.cpp-bf16" and not ours)
        return not (quick and (row.name == "prompt-2048" or peer in ONCE and row.requests == 32))

    return [row for row in ROWS if wanted(row)]
