"""What every engine is given: the model's shape, the adapters, the prompts. Standard library only, so that each environment can import it."""

import random
import string
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each linear of a layer, by its name in the Hugging Face folder."""
        kv = self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def linear_parameters(self) -> int:
        return self.layers * sum(outputs * inputs for outputs, inputs in self.linears().values())

    def read_parameters(self) -> int:
        """What a step reads: every linear and the (tied) head."""
        return self.linear_parameters() + self.vocabulary * self.hidden

    def adapter_parameters(self, rank: int) -> int:
        return self.layers * rank * sum(outputs + inputs for outputs, inputs in self.linears().values())

    def prompt_flops(self, tokens: int) -> int:
        """Multiplications and additions of a prompt: the linears, causal attention, and the head for its last token."""
        attention = self.layers * 4 * self.heads * self.head_dim * tokens * (tokens + 1) // 2
        return 2 * self.linear_parameters() * tokens + attention + 2 * self.vocabulary * self.hidden


# The shape of SmolLM-135M, and one of half a billion parameters for the time that a start takes.
SMALL = Shape(hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocabulary=49_152)
LARGE = Shape(hidden=1024, intermediate=4096, layers=30, heads=16, kv_heads=4, vocabulary=49_152)

RANK = 16
ADAPTERS = [f"r16-{number:02}" for number in range(32)]
MIXED_RANKS = [8, 16, 32, 64]
MIXED = [f"mixed-{rank}-{number}" for rank in MIXED_RANKS for number in range(2)]

END = "<|endoftext|>"
# Printable ASCII in the order of GPT-2's byte alphabet: token n is the character 33 + n. Prompts are drawn from these, so that a prompt is
# the same for an engine that takes token ids and for one that takes text only.
PRINTABLE = range(0, 94)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in its order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + number) for number in range(len(hidden))]


def vocabulary(size: int) -> list[str]:
    """Bytes, one merge (llama.cpp wants one), words of four letters, the end token."""
    words = ("".join(letters) for letters in product(string.ascii_lowercase, repeat=4))
    tokens = byte_alphabet()
    tokens.append(MERGE[0] + MERGE[1])
    tokens += [next(words) for _ in range(size - len(tokens) - 1)]
    return [*tokens, END]


MERGE = (chr(256), chr(256))  # two zero bytes: no prompt has them


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Prompts of one seed; no two of a run begin alike, so that no prefix cache flatters a figure."""
    draw = random.Random(f"{count} {length} {seed}")
    made = [[draw.choice(PRINTABLE) for _ in range(length)] for _ in range(count)]
    firsts = draw.sample(range(len(PRINTABLE) ** 2), count)
    for prompt, first in zip(made, firsts, strict=True):
        start = [first // len(PRINTABLE), first % len(PRINTABLE)]
        prompt[: min(2, length)] = start[:length]
    return made


def text(prompt: list[int]) -> str:
    return "".join(chr(33 + token) for token in prompt)


def tokens_of(text: str, vocabulary: list[str]) -> list[int]:
    """The tokens of generated text: words of four letters, and single bytes between them."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    found, place = [], 0
    while place < len(text):
        size = 4 if text[place : place + 4] in ids else 1
        found.append(ids.get(text[place : place + size], -1))
        place += size
    return found
