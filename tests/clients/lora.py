"""Random LoRA adapters for the built-in model, in PEFT's files, with nothing but the standard library.

    target/clients/openai3/bin/python tests/clients/lora.py FOLDER    # the crowd tests' eight, for `myriad push FOLDER/*`
"""

import array
import json
import random
import struct
import sys
from pathlib import Path

from server import MODEL, MODEL_FOLDER

Files = dict[str, bytes]
LINEARS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def shapes() -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear of a layer."""
    config = json.loads((MODEL_FOLDER / "config.json").read_text())
    hidden, intermediate, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    return {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def layers() -> int:
    return json.loads((MODEL_FOLDER / "config.json").read_text())["num_hidden_layers"]


def adapter(seed: int, rank: int = 4, linears: tuple[str, ...] = LINEARS) -> Files:
    """The files of an adapter; equal arguments give equal bytes."""
    draw = random.Random(seed)
    tensors = {}
    for layer in range(layers()):
        for linear in linears:
            outputs, inputs = shapes()[linear]
            path = f"base_model.model.model.layers.{layer}.{linear}"
            tensors[f"{path}.lora_A.weight"] = ([rank, inputs], gaussian(draw, rank * inputs, inputs**-0.5))
            tensors[f"{path}.lora_B.weight"] = ([outputs, rank], gaussian(draw, outputs * rank, 0.5 * rank**-0.5))
    return {"adapter_config.json": config(rank, linears), "adapter_model.safetensors": safetensors(tensors)}


def eight() -> dict[str, Files]:
    """Of different ranks and linears, by name."""
    linears = list(shapes())
    ranks = [1, 2, 3, 4, 8, 12, 16, 32]
    return {f"random-{rank}": adapter(number, rank, tuple(linears[number % 3 :: 1 + number % 2])) for number, rank in enumerate(ranks)}


def config(rank: int, linears: tuple[str, ...]) -> bytes:
    modules = [linear.split(".")[1] for linear in linears]
    return json.dumps(
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": MODEL,
            "r": rank,
            "lora_alpha": rank,
            "target_modules": modules,
            "bias": "none",
        }
    ).encode()


def gaussian(draw: random.Random, count: int, deviation: float) -> array.array:
    return array.array("f", (draw.gauss(0.0, deviation) for _ in range(count)))


def safetensors(tensors: dict[str, tuple[list[int], array.array]]) -> bytes:
    """https://github.com/huggingface/safetensors#format"""
    header, data = {}, bytearray()
    for name, (shape, values) in tensors.items():
        start = len(data)
        data += values.tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def parts(files: Files) -> list:
    """As httpx wants the parts of a multipart upload."""
    return [("files", (name, content)) for name, content in files.items()]


if __name__ == "__main__":
    for name, files in eight().items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
