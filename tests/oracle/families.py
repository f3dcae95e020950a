"""One small random model per family, written by transformers itself."""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

import tokenizer

COMMON = {
    "vocab_size": 250,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Written by transformers 5, unknown to 4 (or the other way round): what the two spellings do not share.
ONLY_IN_5 = ["rope_parameters", "dtype", "layer_types"]


@dataclass
class Family:
    config: type[PreTrainedConfig]
    settings: dict
    dtype: torch.dtype = torch.float32
    shard: str = "50GB"
    # What transformers 4 wrote beside the common keys.
    spelling_4: dict = field(default_factory=dict)


FAMILIES = {
    "llama": Family(LlamaConfig, {"num_hidden_layers": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "llama3": Family(
        LlamaConfig,
        {
            "vocab_size": tokenizer.VOCABULARY,
            "bos_token_id": tokenizer.BEGIN,
            "eos_token_id": [tokenizer.END, tokenizer.END_OF_TURN],
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        torch.bfloat16,
    ),
    "llama-linear": Family(
        LlamaConfig,
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "llama-yarn": Family(
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 16.0,
                "beta_slow": 1.0,
            },
        },
        torch.float16,
    ),
    "mistral": Family(
        MistralConfig,
        {
            "sliding_window": 24,
            "head_dim": 24,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        torch.bfloat16,
        shard="60KB",
    ),
    "qwen2": Family(
        Qwen2Config,
        {
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        torch.bfloat16,
        spelling_4={"sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen3": Family(
        Qwen3Config,
        {
            "num_hidden_layers": 3,
            "head_dim": 32,
            "use_sliding_window": True,
            "sliding_window": 24,
            "max_window_layers": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
}


def write(name: str, folder: Path) -> None:
    family = FAMILIES[name]
    config = family.config(**{**COMMON, **family.settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed=zlib.crc32(name.encode()))
    model.to(family.dtype).save_pretrained(folder, max_shard_size=family.shard)
    write_spelling_4(folder, family)
    if name == "llama3":
        tokenizer.write(folder)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights so large that attention is peaked and logits lie apart; norms and biases are not their neutral values, so that one
    which is left out shows."""
    generator = torch.Generator().manual_seed(seed)
    # Tied and large, an embedding would mostly predict the token that was read.
    embedding = 0.2 if model.config.tie_word_embeddings else 0.35
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(embedding * noise)
            else:
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(gain * noise / parameter.shape[1] ** 0.5)


def write_spelling_4(folder: Path, family: Family) -> None:
    """The configuration as transformers 4 wrote it: `rope_theta` and `rope_scaling` apart, `torch_dtype`, no `layer_types`, no
    `head_dim` where it follows from the others."""
    config = json.loads((folder / "config.json").read_text())
    rope = dict(config["rope_parameters"])
    for key in ONLY_IN_5:
        config.pop(key, None)
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] in ("linear", "yarn"):  # the key's name before 4.43
        rope["type"] = rope.pop("rope_type")
    config["torch_dtype"] = str(family.dtype).removeprefix("torch.")
    if config.get("head_dim") == config["hidden_size"] // config["num_attention_heads"]:
        del config["head_dim"]
    config["transformers_version"] = "4.40.0"
    config.update(family.spelling_4)
    (folder / "config-transformers-4.json").write_text(json.dumps(config, indent=2) + "\n")
