"""Random weights for a configuration, and what transformers computes with them in float32."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

PROMPT = 48
GREEDY = 24
# A greedy choice closer than this says nothing about an implementation.
MARGIN = 0.05
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

torch.set_num_threads(1)


def normal(seed, name, shape):
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def random_weights(config, seed, used_vocabulary):
    """Weights by their names in transformers, scaled so that attention and logits are peaked."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tied = config.tie_word_embeddings
    gemma = config.model_type.startswith("gemma3")
    weights = {}
    for name, parameter in model.named_parameters():
        value = normal(seed, name, tuple(parameter.shape))
        width = parameter.shape[-1]
        if "embed_tokens" in name:
            value *= 2.5 / width**0.5 if tied else 1.0
        elif "lm_head" in name:
            value *= 2.5 / width**0.5
        elif name.endswith("bias"):
            value *= 0.3
        elif "norm" in name:
            value = 1.0 + 0.2 * value
            if name == "model.norm.weight" and tied:
                # Or a tied head would repeat the last token for ever.
                value *= torch.sign(normal(seed, "sign", tuple(value.shape)))
            # Gemma multiplies by one more than the weight.
            value -= 1.0 if gemma else 0.0
        else:
            value *= 1.4 / width**0.5
        if used_vocabulary is not None and ("embed_tokens" in name or "lm_head" in name):
            value[used_vocabulary:] = 0
        weights[name] = value
    return weights


def load(config, weights):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]


def expected(model, prompt, length=GREEDY):
    """The logits after the prompt, then greedy tokens with log-probabilities and margins."""
    tokens = list(prompt)
    first, ids, logprobs, margins = None, [], [], []
    for _ in range(length):
        row = logits(model, tokens)
        first = row if first is None else first
        best = torch.topk(row, 2)
        ids.append(int(best.indices[0]))
        logprobs.append(round(float(torch.log_softmax(row, -1)[ids[-1]]), 6))
        margins.append(round(float(best.values[0] - best.values[1]), 6))
        tokens.append(ids[-1])
    return {
        "prompt": list(prompt),
        "logits_last": [round(float(value), 6) for value in first],
        "greedy": ids,
        "greedy_logprobs": logprobs,
        "greedy_margins": margins,
    }


def is_telling(result):
    return (
        min(result["greedy_margins"]) >= MARGIN and len(set(result["greedy"])) >= len(result["greedy"]) // 3
    )


def random_prompt(seed, first, ordinary, length=PROMPT):
    generator = np.random.default_rng([seed, 1])
    chosen = [int(ordinary[index]) for index in generator.integers(0, len(ordinary), length)]
    return [first, *chosen[1:]] if first is not None else chosen


def config_of(folder):
    return AutoConfig.from_pretrained(folder)


def write_checkpoint(folder, settings, weights, shards=1):
    """config.json and the weights; returns the weights as they are stored."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", settings)
    dtype = STORED[settings.get("torch_dtype") or settings["dtype"]]
    stored = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        write_shards(folder, stored, shards)
    return {name: value.float() for name, value in stored.items()}


def write_shards(folder, stored, shards):
    names = list(stored)
    size = -(-len(names) // shards)
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: stored[name] for name in names[number * size : (number + 1) * size]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(value.numel() * value.element_size() for value in stored.values())
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
    )


def from_folder(folder):
    """The checkpoint as transformers loads it; every weight must be found."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def write_json(path, value, *, indent=None):
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    Path(path).write_text(text + "\n", encoding="utf-8")
