"""One random LoRA adapter per kind, written by peft itself."""

import json
import zlib
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Size of an adapter's share of a linear's output, beside the base's share of about 1.
STRENGTH = 0.3

KINDS: dict[str, tuple[dict, torch.dtype]] = {
    "plain": ({"r": 8, "lora_alpha": 16, "target_modules": LINEARS}, torch.float32),
    "attention": ({"r": 8, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}, torch.float16),
    "rslora": ({"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}, torch.float32),
    "patterns": (
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": LINEARS,
            "rank_pattern": {"layers.0.self_attn.q_proj": 12, "down_proj": 2, r"layers\.1\.mlp\.(gate|up)_proj": 6},
            "alpha_pattern": {"v_proj": 3, "layers.0.mlp.down_proj": 10},
        },
        torch.float32,
    ),
    "layers": ({"r": 8, "lora_alpha": 8, "target_modules": LINEARS, "layers_to_transform": [1]}, torch.float32),
    "wide": (
        {
            "r": 64,
            "lora_alpha": 64,
            "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"],
            "rank_pattern": {"k_proj": 3},
        },
        torch.bfloat16,
    ),
}


def write(kind: str, model_folder: Path, folder: Path) -> None:
    settings, dtype = KINDS[kind]
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    randomise(adapted, seed=zlib.crc32(f"{model_folder.name}/{kind}".encode()))
    save(adapted, model_folder, folder)
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})


def randomise(adapted: torch.nn.Module, seed: int) -> None:
    """Random A and B; B of a size that gives every module the same share, whatever its rank and scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in adapted.modules():
            for name, a in getattr(module, "lora_A", {}).items():
                b, scale = module.lora_B[name], module.scaling[name]
                rank, inputs = a.weight.shape
                a.weight.copy_(torch.randn(a.weight.shape, generator=generator) / inputs**0.5)
                b.weight.copy_(torch.randn(b.weight.shape, generator=generator) * STRENGTH / (scale * rank**0.5))


def save(adapted: torch.nn.Module, model_folder: Path, folder: Path, **options) -> None:
    """As peft saves it, but the base named by its name and not by where it lay."""
    adapted.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = model_folder.name
    for key in ("target_modules", "feedforward_modules"):  # peft keeps them as sets, in another order each time
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
