"""Checkpoints whose greedy tokens are far from ties and whose settings all matter."""

import shutil

from gguf import GGMLQuantizationType as Type
from transformers import AutoTokenizer

import cases
import gguf_files
import network


def make(folder, settings, *, seed, eos, without, shards=1):
    """Writes a checkpoint whose greedy tokens are far from ties and whose settings all matter."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary_size = settings.setdefault("vocab_size", len(tokenizer))
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.get_added_vocab().values()))
    network.write_json(folder / "config.json", settings)
    config = network.config_of(folder)
    used = len(tokenizer) if vocabulary_size != len(tokenizer) else None
    for attempt in range(50):
        draw = seed * 1000 + attempt
        weights = network.random_weights(config, draw, used)
        stored = network.write_checkpoint(folder, settings, weights, shards)
        prompt = network.random_prompt(draw, tokenizer.bos_token_id, ordinary)
        result = network.expected(network.load(config, stored), prompt)
        if network.is_telling(result):
            break
    else:
        raise SystemExit(f"{folder.name}: no draw has clear greedy tokens")
    assert result == network.expected(network.from_folder(folder), prompt), "not what is stored"
    matters = [difference(folder, settings | change, stored, result) for change in without]
    assert all(change > 0.2 for change in matters), (folder.name, matters)
    network.write_json(folder / "expected.json", result)
    generation = {"bos_token_id": settings["bos_token_id"], "eos_token_id": eos, "do_sample": False}
    network.write_json(folder / "generation_config.json", generation, indent=2)
    cases.write_cases(folder, eos)
    print(
        f"{folder.name}: draw {attempt}, least margin {min(result['greedy_margins']):.3f}, changes {matters}"
    )


def difference(folder, settings, weights, result):
    """How far the logits move when a setting is another one."""
    scratch = folder / "scratch"
    scratch.mkdir()
    network.write_json(scratch / "config.json", settings)
    other = network.logits(network.load(network.config_of(scratch), weights), result["prompt"])
    shutil.rmtree(scratch)
    moved = max(abs(a - b) for a, b in zip(other.tolist(), result["logits_last"]))
    return round(moved, 3)


def make_gguf(
    folder,
    architecture,
    write_vocabulary,
    template,
    *,
    adds_bos,
    name="tiny",
    matrices=Type.F16,
    pieces=None,
    prefix=False,
    **changes,
):
    """The checkpoint in `folder` as a GGUF file, with what is expected of the weights in that."""
    target = folder.with_name(f"{folder.name}-gguf")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    config = network.config_of(folder)
    for key, value in changes.items():
        setattr(config, key, value)
    weights = sorted(network.from_folder(folder).named_parameters(), key=lambda weight: weight[0])
    weights = {name: weight.detach() for name, weight in weights}
    stored = gguf_files.write(
        target / "model.gguf",
        architecture,
        config,
        weights,
        write_vocabulary,
        template,
        name=name,
        matrices=matrices,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.get_added_vocab().values()))
    model = network.load(config, stored)
    for attempt in range(50):
        prompt = network.random_prompt(attempt, tokenizer.bos_token_id, ordinary)
        result = network.expected(model, prompt)
        if network.is_telling(result):
            break
    else:
        raise SystemExit(f"{target.name}: no prompt has clear greedy tokens")
    network.write_json(target / "expected.json", result)
    cases.write_gguf_cases(folder, target, pieces, prefix, adds_bos)
    print(f"{target.name}: prompt {attempt}, least margin {min(result['greedy_margins']):.3f}")
