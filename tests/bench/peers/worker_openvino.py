"""OpenVINO GenAI: the pipeline that batches continuously.

It takes one adapter per call: the requests of a call all get the first one's, silently. So a batch with different adapters is one call
for each of them, one after the other, which is what its user would have to do.
"""

from pathlib import Path

import numpy as np
import openvino_genai as genai
from openvino import Tensor
from worker import serve


class Engine:
    def __init__(self, files: str, adapters: list[str], threads: int, weights: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2
        scheduler.max_num_batched_tokens = 4096
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = False
        properties: dict = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
        self.adapters = {name: genai.Adapter(str(Path(files) / "adapters" / name / "adapter_model.safetensors")) for name in adapters}
        if adapters:
            properties["adapters"] = genai.AdapterConfig(list(self.adapters.values()))
        folder = Path(files) / "openvino" / weights
        self.pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)

    def settings(self, adapter: str | None, tokens: int) -> genai.GenerationConfig:
        settings = genai.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = tokens
        settings.ignore_eos = True
        settings.do_sample = False
        if self.adapters:
            # Their files have no alpha: it is given here, as alpha / rank (2 in every adapter of this benchmark).
            settings.adapters = genai.AdapterConfig() if adapter is None else genai.AdapterConfig([(self.adapters[adapter], 2.0)])
        return settings

    def generate(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> list[list[int]]:
        made: list[list[int]] = [[] for _ in prompts]
        for adapter in dict.fromkeys(adapters):
            places = [place for place, name in enumerate(adapters) if name == adapter]
            inputs = [Tensor(np.array([prompts[place]], dtype=np.int64)) for place in places]
            replies = self.pipeline.generate(inputs, [self.settings(adapter, tokens)] * len(places))
            for place, reply in zip(places, replies, strict=True):
                made[place] = list(reply.m_generation_ids[0])
        return made


if __name__ == "__main__":
    serve(Engine)
