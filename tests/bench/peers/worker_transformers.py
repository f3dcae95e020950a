"""transformers, with peft where there are adapters: one batch, its own `generate`."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from worker import serve


class Engine:
    def __init__(self, files: str, adapters: list[str], threads: int, dtype: str = "bfloat16") -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(Path(files) / "model", dtype=getattr(torch, dtype), attn_implementation="sdpa")
        self.mixed = False
        if adapters:
            from peft import PeftModel

            first, *others = adapters
            self.model = PeftModel.from_pretrained(self.model, Path(files) / "adapters" / first, adapter_name=first, autocast_adapter_dtype=False)
            for name in others:
                self.model.load_adapter(Path(files) / "adapters" / name, adapter_name=name, autocast_adapter_dtype=False)
            self.model.to(getattr(torch, dtype))
        self.adapters = adapters
        self.model.eval()

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> list[list[int]]:
        batch = torch.tensor(prompts)
        how = {"attention_mask": torch.ones_like(batch), "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        if not self.adapters:
            made = self.model.generate(batch, **how)
        elif len(set(adapters)) == 1 and adapters[0] is None:
            with self.model.disable_adapter():
                made = self.model.generate(batch, **how)
        elif len(set(adapters)) == 1:
            # One adapter for all: the path that peft is fastest on.
            self.model.set_adapter(adapters[0])
            made = self.model.generate(batch, **how)
        else:
            made = self.model.generate(batch, adapter_names=[name or "__base__" for name in adapters], **how)
        return made[:, batch.shape[1] :].tolist()


if __name__ == "__main__":
    serve(Engine)
