"""Makes models/myriad-mini from nothing but generate.py: tokenizer, base model, adapters, accuracies, model card.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python train.py            # everything; about 40 minutes on one core (OMP_NUM_THREADS=1)
    venv/bin/python train.py base       # or one part: base, adapters, evaluate
"""

import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import generate

SEED = 20261123
HERE = Path(__file__).parent
FOLDER = HERE.parent / "myriad-mini"
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VOCABULARY = 640
CONTEXT = 2048
BASE_STEPS, ADAPTER_STEPS = 3000, 400
BATCH = 64
HELD_OUT = 300


def make_tokenizer() -> None:
    """Byte-level BPE over the domain's own text, digits one by one so that numbers can be copied."""
    rng = random.Random(SEED)
    template = (HERE / "chat_template.jinja").read_text()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    texts = [json.dumps(generate.training(rng, task)["messages"], ensure_ascii=False) for task in generate.TASKS for _ in range(2000)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, START, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=template,
                                   model_max_length=CONTEXT, clean_up_tokenization_spaces=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(FOLDER)


def tokens_and_mask(tokenizer, example) -> tuple[list[int], list[bool]]:
    """The conversation's tokens, and which of them the model has to say: what follows each assistant header."""
    ids = tokenizer.apply_chat_template(example["messages"], tools=example.get("tools"), return_dict=False)
    header = tokenizer.encode(f"{START}assistant\n")
    end = tokenizer.convert_tokens_to_ids(END)
    mask, speaks = [], False
    for at, token in enumerate(ids):
        mask.append(speaks)
        if token == end:
            speaks = False
        elif ids[at + 1 - len(header):at + 1] == header:
            speaks = True
    return ids, mask


def batches(tokenizer, tasks: list[str], steps: int, seed: str):
    """Batches of examples of like length, drawn for ever from fresh pools."""
    rng = random.Random(seed)
    pool: list[tuple[list[int], list[bool]]] = []
    for _ in range(steps):
        if not pool:
            drawn = [tokens_and_mask(tokenizer, generate.training(rng, tasks[i % len(tasks)])) for i in range(BATCH * 50)]
            drawn.sort(key=lambda pair: len(pair[0]))
            pool = [drawn[at:at + BATCH] for at in range(0, len(drawn), BATCH)]
            rng.shuffle(pool)
        chosen = pool.pop()
        width = max(len(ids) for ids, _ in chosen)
        ids = torch.zeros(BATCH, width, dtype=torch.long)
        mask = torch.zeros(BATCH, width, dtype=torch.bool)
        for row, (tokens, speaks) in enumerate(chosen):
            ids[row, :len(tokens)] = torch.tensor(tokens)
            mask[row, :len(tokens)] = torch.tensor(speaks)
        yield ids, mask


def learn(model, tokenizer, tasks: list[str], steps: int, rate: float, label: str) -> None:
    torch.manual_seed(SEED)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps))))
    model.train()
    started, seen = time.monotonic(), 0
    for step, (ids, mask) in enumerate(batches(tokenizer, tasks, steps, f"{SEED} {label}")):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1][mask[:, 1:]]
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][mask[:, 1:]])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        schedule.step()
        seen += ids.numel()
        if step % 100 == 0 or step == steps - 1:
            rate_now = seen / (time.monotonic() - started)
            print(f"{label}: step {step}/{steps} loss {loss.item():.4f} {rate_now:.0f} tokens/s", flush=True)


def make_base() -> None:
    make_tokenizer()
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (("eos_token_id", END), ("pad_token_id", PAD))}
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, max_position_embeddings=CONTEXT, **ids)
    model = Qwen3ForCausalLM(config)
    learn(model, tokenizer, [*generate.BASE_TASKS, "extraction"], BASE_STEPS, 3e-3, "base")
    model.generation_config.update(do_sample=False, **ids)
    model.to(torch.bfloat16).save_pretrained(FOLDER)


def make_adapters() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for task in generate.ADAPTER_TASKS:
        base = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
        torch.manual_seed(SEED)
        model = get_peft_model(base, LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules="all-linear"))
        learn(model, tokenizer, [task], ADAPTER_STEPS, 5e-3, task)
        model.peft_config["default"].base_model_name_or_path = "myriad-mini"
        folder = FOLDER / "adapters" / task
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)


@torch.no_grad()
def accuracy(model, tokenizer, task: str) -> float:
    """Share of held-out examples whose whole answer is right, drawn greedily."""
    right = 0
    end = tokenizer.convert_tokens_to_ids(END)
    examples = generate.held_out(task, HELD_OUT)
    for example in examples:
        options = {"tools": example.get("tools"), "return_dict": False}
        prompt = tokenizer.apply_chat_template(example["messages"][:-1], add_generation_prompt=True, **options)
        whole = tokenizer.apply_chat_template(example["messages"], **options)
        expected = whole[len(prompt):]
        drawn = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                               max_new_tokens=len(expected) + 8, do_sample=False, eos_token_id=end, pad_token_id=0)
        right += drawn[0, len(prompt):].tolist() == expected
    return right / len(examples)


def evaluate() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    base = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    results = {"seed": SEED, "held_out_examples": HELD_OUT, "base": {}, "adapters": {}}
    for task in generate.BASE_TASKS:
        results["base"][task] = accuracy(base, tokenizer, task)
        print("base", task, results["base"][task], flush=True)
    for task in generate.ADAPTER_TASKS:
        alone = accuracy(base, tokenizer, task)
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32), FOLDER / "adapters" / task).eval()
        results["adapters"][task] = {"base": alone, "adapter": accuracy(adapted, tokenizer, task)}
        print(task, results["adapters"][task], flush=True)
    results["parameters"] = sum(p.numel() for p in base.parameters())
    (HERE / "accuracy.json").write_text(json.dumps(results, indent=2) + "\n")
    write_card(results)


def write_card(results) -> None:
    lines = [f"| {task} | {value:.1%} | |" for task, value in results["base"].items()]
    lines += [f"| adapter `{task}` | {value['base']:.1%} | {value['adapter']:.1%} |" for task, value in results["adapters"].items()]
    card = (HERE / "card.md").read_text()
    card = card.replace("{table}", "\n".join(lines)).replace("{parameters}", f"{results['parameters']:,}")
    (FOLDER / "README.md").write_text(card.replace("{held_out}", str(HELD_OUT)).replace("{seed}", str(SEED)))


PARTS = {"base": make_base, "adapters": make_adapters, "evaluate": evaluate}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
