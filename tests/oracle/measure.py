"""What the reference implementations answer: logits, greedy tokens, and how far bf16 is from f32."""

import shutil
import tempfile
import zlib
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

PROMPT = 83
GREEDY = 64
# A test allows 1e-3 of error for each of the two largest logits; this leaves three times that.
GAP = 6e-3
# A random model likes to repeat itself; an answer of few distinct tokens would show little.
DISTINCT = 24
BF16_PROMPTS = 16
BF16_LENGTH = 132


def load(folder: Path, adapter: str | None, dtype: torch.dtype) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if adapter is not None:
        path = folder / "adapters" / adapter
        model = PeftModel.from_pretrained(model, path, autocast_adapter_dtype=dtype == torch.float32)
        if dtype == torch.bfloat16:
            model = model.to(dtype)
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float()


def case(folder: Path, adapter: str | None) -> tuple[dict, torch.Tensor]:
    """The first seed's prompt whose 64 greedy tokens are all decided by a clear gap."""
    model = load(folder, adapter, torch.float32)
    seed = zlib.crc32(f"{folder.name}/{adapter}/prompt".encode())
    for attempt in range(1000):
        prompt = random_tokens(model, PROMPT, seed + attempt)
        greedy, gaps = continue_greedily(model, prompt)
        if greedy is not None and len(set(greedy)) >= DISTINCT:
            break
    else:
        raise SystemExit(f"{folder.name} {adapter}: no prompt with clear gaps")
    expected = logits(model, prompt)
    result = {"prompt": prompt, "greedy": greedy, "gaps": [round(gap, 6) for gap in gaps]}
    if adapter is not None:
        base = logits(load(folder, None, torch.float32), prompt)
        result["distance"] = (expected - base).abs().max().item()
    return result, expected


def continue_greedily(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int] | None, list[float]]:
    tokens, gaps = list(prompt), []
    for _ in range(GREEDY):
        best = logits(model, tokens)[-1].topk(2)
        gap = (best.values[0] - best.values[1]).item()
        if gap <= GAP:
            return None, gaps
        gaps.append(gap)
        tokens.append(best.indices[0].item())
    return tokens[len(prompt) :], gaps


def bf16(folder: Path, adapters: list[str]) -> dict:
    narrow = load(folder, None, torch.bfloat16)
    seed = zlib.crc32(f"{folder.name}/bf16".encode())
    prompts = [random_tokens(narrow, BF16_LENGTH, seed + number) for number in range(BF16_PROMPTS)]
    cases = {}
    for adapter in [None, *adapters]:
        wide, narrow = load(folder, adapter, torch.float32), load(folder, adapter, torch.bfloat16)
        kls = torch.cat([divergence(logits(wide, prompt), logits(narrow, prompt)) for prompt in prompts])
        cases[adapter or "base"] = {"mean_kl": kls.mean().item(), "max_kl": kls.max().item()}
    return {"prompts": prompts, "cases": cases}


def divergence(wide: torch.Tensor, narrow: torch.Tensor) -> torch.Tensor:
    """KL(wide || narrow) at each position."""
    wide, narrow = wide.double().log_softmax(-1), narrow.double().log_softmax(-1)
    return (wide.exp() * (wide - narrow)).sum(-1)


def check_spelling_4(folder: Path) -> None:
    """transformers itself must read the older configuration to the same model."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        shutil.copy(folder / "config-transformers-4.json", Path(copy) / "config.json")
        prompt = list(range(3, 3 + PROMPT))
        old, new = (logits(load(path, None, torch.float32), prompt) for path in (Path(copy), folder))
    if not torch.equal(old, new):
        raise SystemExit(f"{folder.name}: config-transformers-4.json is another model, off by {(old - new).abs().max()}")


def random_tokens(model: torch.nn.Module, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (count,), generator=generator).tolist()


def save_logits(values: torch.Tensor, path: Path) -> None:
    save_file({"logits": values.contiguous()}, path)
