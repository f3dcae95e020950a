#!/usr/bin/env python3
"""Writes the random model and its adapters: a Hugging Face folder, PEFT folders, and GGUF files of the same numbers.

    write_files.py FOLDER          (needs the environment `files`; `compare.py` runs it)

Weights are drawn at unit gain (1 / sqrt(inputs)), the embedding at 0.02, so that activations and logits are of ordinary size and
greedy answers vary: zeros would make all tokens ties, and with 0.02 everywhere attention's mean of the context wins and one token is
repeated for ever, which compares little and flatters whoever guesses ahead.
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from shape import ADAPTERS, END, LARGE, MERGE, MIXED, MIXED_RANKS, RANK, SMALL, Shape, vocabulary
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EMBEDDING = 0.02
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Tensors = dict[str, np.ndarray]


def bf16(values: np.ndarray) -> np.ndarray:
    """To the nearest bf16, ties to even, as its 16 bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def normal(draw: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    return bf16(draw.standard_normal(shape, dtype=np.float32) * np.float32(deviation))


def model(shape: Shape, seed: int) -> Tensors:
    draw = np.random.default_rng(seed)
    ones = bf16(np.ones(shape.hidden))
    tensors = {"model.embed_tokens.weight": normal(draw, (shape.vocabulary, shape.hidden), EMBEDDING), "model.norm.weight": ones}
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        tensors[f"{at}.input_layernorm.weight"] = ones
        tensors[f"{at}.post_attention_layernorm.weight"] = ones
        for linear, size in shape.linears().items():
            tensors[f"{at}.{linear}.weight"] = normal(draw, size, size[1] ** -0.5)
    return tensors


def adapter(shape: Shape, rank: int, seed: int) -> Tensors:
    """A as PEFT initialises it; B large enough that an adapter changes the answers."""
    draw = np.random.default_rng(1000 + seed)
    tensors = {}
    for layer in range(shape.layers):
        for linear, (outputs, inputs) in shape.linears().items():
            at = f"base_model.model.model.layers.{layer}.{linear}"
            tensors[f"{at}.lora_A.weight"] = normal(draw, (rank, inputs), (3 * inputs) ** -0.5)
            tensors[f"{at}.lora_B.weight"] = normal(draw, (outputs, rank), 0.2 * rank**-0.5)
    return tensors


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """https://github.com/huggingface/safetensors#format; the library has no bf16 for NumPy."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.tobytes())


def config(shape: Shape) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "max_position_embeddings": 8192,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": shape.vocabulary - 1,
        "eos_token_id": shape.vocabulary - 1,
        "torch_dtype": "bfloat16",
    }


def write_folder(folder: Path, shape: Shape, tensors: Tensors) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    ids = {token: number for number, token in enumerate(vocabulary(shape.vocabulary))}
    tokenizer = Tokenizer(models.BPE(ids, [MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END, "pad_token": END, "model_max_length": 8192}
    about["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    generation = {"bos_token_id": shape.vocabulary - 1, "eos_token_id": shape.vocabulary - 1}
    for name, content in {"config": config(shape), "tokenizer_config": about, "generation_config": generation}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))


def write_peft(folder: Path, rank: int, tensors: Tensors) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "random-135m",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": [linear.split(".")[1] for linear in SMALL.linears()],
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(about, indent=2))


def paired(values: np.ndarray, linear: str, shape: Shape) -> np.ndarray:
    """GGUF's Llama keeps the two halves of a rotated head interleaved: rows of Q and K (and of their B) are reordered."""
    heads = {"self_attn.q_proj": shape.heads, "self_attn.k_proj": shape.kv_heads}.get(linear)
    if heads is None:
        return values
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def add(writer: gguf.GGUFWriter, name: str, bits: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    values = np.ascontiguousarray(widened(bits))
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path: Path, shape: Shape, tensors: Tensors, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocabulary)
    tokens = vocabulary(shape.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_bos_token_id(shape.vocabulary - 1)
    writer.add_eos_token_id(shape.vocabulary - 1)
    writer.add_add_bos_token(False)
    add(writer, "token_embd.weight", tensors["model.embed_tokens.weight"], kind)
    add(writer, "output_norm.weight", tensors["model.norm.weight"], gguf.GGMLQuantizationType.F32)
    for layer in range(shape.layers):
        at, to = f"model.layers.{layer}", f"blk.{layer}"
        add(writer, f"{to}.attn_norm.weight", tensors[f"{at}.input_layernorm.weight"], gguf.GGMLQuantizationType.F32)
        add(writer, f"{to}.ffn_norm.weight", tensors[f"{at}.post_attention_layernorm.weight"], gguf.GGMLQuantizationType.F32)
        for linear, name in GGUF_NAMES.items():
            add(writer, f"{to}.{name}.weight", paired(tensors[f"{at}.{linear}.weight"], linear, shape), kind)
    finish(writer)


def write_lora_gguf(path: Path, shape: Shape, rank: int, tensors: Tensors, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 2.0 * rank)
    for layer in range(shape.layers):
        for linear, name in GGUF_NAMES.items():
            at = f"base_model.model.model.layers.{layer}.{linear}"
            add(writer, f"blk.{layer}.{name}.weight.lora_a", tensors[f"{at}.lora_A.weight"], kind)
            add(writer, f"blk.{layer}.{name}.weight.lora_b", paired(tensors[f"{at}.lora_B.weight"], linear, shape), kind)
    finish(writer)


def main() -> None:
    folder = Path(sys.argv[1])
    tensors = model(SMALL, seed=1)
    write_folder(folder / "model", SMALL, tensors)
    kinds = gguf.GGMLQuantizationType
    write_gguf(folder / "model-bf16.gguf", SMALL, tensors, kinds.BF16)
    write_gguf(folder / "model-q8_0.gguf", SMALL, tensors, kinds.Q8_0)
    (folder / "gguf").mkdir(exist_ok=True)
    for seed, name in enumerate(ADAPTERS):
        weights = adapter(SMALL, RANK, seed)
        write_peft(folder / "adapters" / name, RANK, weights)
        write_lora_gguf(folder / "gguf" / f"{name}.gguf", SMALL, RANK, weights, kinds.BF16)
    for seed, name in enumerate(MIXED):
        rank = MIXED_RANKS[seed // 2]
        write_peft(folder / "mixed" / name, rank, adapter(SMALL, rank, 100 + seed))
    write_folder(folder / "large", LARGE, model(LARGE, seed=2))


if __name__ == "__main__":
    main()
