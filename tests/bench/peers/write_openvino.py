#!/usr/bin/env python3
"""Converts the random model to OpenVINO's files, in bf16 and with 8-bit weights, by OpenVINO's own tool (optimum-intel).

    write_openvino.py FOLDER       (needs the environment `openvino`; `compare.py` runs it)
"""

import sys
from pathlib import Path

import openvino
import openvino_tokenizers
import torch
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer


def main() -> None:
    folder = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    encoder, decoder = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, quantization in {"bf16": None, "int8": OVWeightQuantizationConfig(bits=8, sym=True)}.items():
        out = folder / "openvino" / name
        how = {} if quantization is None else {"quantization_config": quantization}
        model = OVModelForCausalLM.from_pretrained(folder / "model", export=True, compile=False, dtype=torch.bfloat16, **how)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        openvino.save_model(encoder, out / "openvino_tokenizer.xml")
        openvino.save_model(decoder, out / "openvino_detokenizer.xml")


if __name__ == "__main__":
    main()
