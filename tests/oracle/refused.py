"""Adapters that Myriad must refuse by name: served as plain LoRA, each would answer wrongly."""

import json
import shutil
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import adapters

# Only the first layer's q: the folders stay small.
SMALL = {"r": 4, "lora_alpha": 8, "target_modules": r".*layers\.0\.self_attn\.q_proj"}

KINDS = {
    "dora": {"use_dora": True},
    "modules-to-save": {"modules_to_save": ["lm_head"]},
    "bias": {"bias": "lora_only"},
    "lora-bias": {"lora_bias": True},
    "pissa": {"init_lora_weights": "pissa"},
    "trainable-tokens": {"trainable_token_indices": [3, 5]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "lm-head": {"target_modules": ["lm_head"]},
    "fan-in-fan-out": {},
    "pickle": {},
}


def make(model_folder: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for kind, settings in KINDS.items():
        config = LoraConfig(task_type="CAUSAL_LM", **{**SMALL, **settings})
        write(config, model_folder, folder / kind, safe_serialization=kind != "pickle")
    ia3 = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    write(ia3, model_folder, folder / "ia3")
    # peft itself resets this one for an ordinary linear, so it is written into the file.
    path = folder / "fan-in-fan-out/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": True}, indent=2, sort_keys=True) + "\n")


def write(config, model_folder: Path, folder: Path, **options) -> None:
    torch.manual_seed(7)
    # A base with biases, where the adapter is to train them.
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    if getattr(config, "bias", "none") != "none":
        base.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.randn(64))
    adapted = get_peft_model(base, config)
    adapters.randomise(adapted, seed=7)
    adapters.save(adapted, model_folder, folder, save_embedding_layers=False, **options)
