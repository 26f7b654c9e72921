"""The model's tokenizer as the folder that other projects load from a hub, made of the model's GGUF file."""

import os
import pathlib

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# What GGUF calls a token that only markup may make.
CONTROL = 3


def save(folder="SmolLM2-135M-Instruct"):
    """Writes it; the folder's path."""
    fields = GGUFReader(os.environ["EMBERLINE_TEST_MODEL"]).fields
    told = {name.removeprefix("tokenizer."): field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}
    assert (told["ggml.model"], told["ggml.pre"]) == ("gpt2", "smollm"), told["ggml.pre"]
    tokens = told["ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in told["ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, told["ggml.token_type"], strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[told["ggml.bos_token_id"]],
        eos_token=tokens[told["ggml.eos_token_id"]],
        model_max_length=fields["llama.context_length"].contents(),
    )
    wrapped.chat_template = told["chat_template"]
    wrapped.save_pretrained(folder)
    return str(pathlib.Path(folder).resolve())


def save_in_cache(name="emberline/SmolLM2-135M-Instruct"):
    """Writes it as if it had been fetched from a hub; the cache's folder and the name there."""
    cache = pathlib.Path("hub").resolve()
    repository, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    save(repository / "snapshots" / commit)
    return str(cache), name
