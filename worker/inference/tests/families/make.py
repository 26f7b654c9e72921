#!/usr/bin/env python3
"""Makes the fixtures in this folder: for each family of models a tiny checkpoint with random
weights as it would lie on the Hugging Face hub, for some also a GGUF file, and what transformers
and sentencepiece make of them.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make.py [NAME…]

Every number is drawn from a fixed seed, so that a second run writes the same bytes. In each folder:

expected.json         greedy tokens and logits in float32, computed from the weights as stored
tokenizer_cases.json  texts with their ids, and what the ids read
chat_cases.json       conversations with the prompt that the chat template makes of them
"""

import shutil
import sys
import warnings
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Type
from sentencepiece import sentencepiece_model_pb2 as proto
from transformers.utils import logging

import cases
import gguf_files
import network
import templates
import vocabulary
from checkpoints import make, make_gguf
from vocabulary import Special

HERE = Path(__file__).parent

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def llama2(folder):
    pieces = vocabulary.pieces()
    tokenizer = vocabulary.sentencepiece_json(pieces, "prepend")
    cases.write_tokenizer(
        folder, tokenizer, templates.BRACKETS, bos="<s>", eos="</s>", unk="<unk>", add_bos_token=True
    )
    # As older configurations are: no head_dim, no number of key/value heads.
    settings = LLAMA | {"torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2}
    del settings["num_key_value_heads"]
    make(folder, settings, seed=1, eos=2, without=[{"rope_theta": 100.0}])
    write_vocabulary = gguf_files.sentencepiece(pieces)
    make_gguf(
        folder, "llama", write_vocabulary, templates.BRACKETS, pieces=pieces, prefix=True, adds_bos=True
    )


def llama3(folder):
    specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    bos, eos = "<|begin_of_text|>", "<|eot_id|>"
    tokenizer = vocabulary.byte_level(
        vocabulary.LLAMA3, [Special(token) for token in specials], bos=bos, whole_words=True
    )
    cases.write_tokenizer(folder, tokenizer, templates.HEADERS, bos=bos, eos=eos)
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_type": "llama3",
    }
    ends = [cases.id_of(tokenizer, token) for token in ("<|end_of_text|>", "<|eot_id|>")]
    settings = LLAMA | {
        "tie_word_embeddings": True,
        "head_dim": 16,
        "rope_theta": 500.0,
        "rope_scaling": scaling,
        "bos_token_id": cases.id_of(tokenizer, bos),
        "eos_token_id": ends,
    }
    make(folder, settings, seed=2, eos=ends, shards=3, without=[{"rope_scaling": None}])
    write_vocabulary = gguf_files.byte_level(tokenizer, "llama-bpe", bos=bos, eos=eos)
    make_gguf(folder, "llama", write_vocabulary, templates.HEADERS, adds_bos=True)


def llama_linear(folder):
    tokenizer = vocabulary.byte_level(vocabulary.GPT2, [Special("<|endoftext|>")], digits=True, merges=20)
    cases.write_tokenizer(
        folder, tokenizer, templates.KITCHEN_SINK, bos="<|endoftext|>", eos="<|endoftext|>", jinja=True
    )
    end = cases.id_of(tokenizer, "<|endoftext|>")
    settings = (
        LLAMA
        | SMALL
        | {
            "attention_bias": True,
            "rope_scaling": {"type": "linear", "factor": 3.0},
            "bos_token_id": end,
            "eos_token_id": end,
        }
    )
    make(folder, settings, seed=3, eos=end, without=[{"rope_scaling": None}])


def llama_yarn(folder):
    specials = [Special("<s>"), Special("</s>"), Special("[INST]"), Special("[/INST]")]
    tokenizer = vocabulary.byte_level(vocabulary.TEKKEN, specials, bos="<s>", whole_words=True, merges=20)
    cases.write_tokenizer(folder, tokenizer, templates.INSTRUCTIONS, bos="<s>", eos="</s>")
    # As newer configurations are: rope_parameters, dtype.
    settings = (
        LLAMA
        | SMALL
        | {
            "dtype": "float16",
            "num_hidden_layers": 3,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 4.0,
                "beta_slow": 1.0,
            },
            "bos_token_id": cases.id_of(tokenizer, "<s>"),
            "eos_token_id": cases.id_of(tokenizer, "</s>"),
        }
    )
    for key in ("torch_dtype", "rope_scaling", "rope_theta"):
        del settings[key]
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
    no_factor = {"rope_parameters": settings["rope_parameters"] | {"attention_factor": 1.0}}
    make(folder, settings, seed=4, eos=settings["eos_token_id"], without=[plain, no_factor])


def mistral(folder):
    pieces = vocabulary.pieces()
    pieces.add([Special("[INST]"), Special("[/INST]")])
    tokenizer = vocabulary.sentencepiece_json(pieces, "metaspace")
    cases.write_tokenizer(
        folder,
        tokenizer,
        templates.INSTRUCTIONS,
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        jinja=True,
        add_bos_token=True,
    )
    settings = (
        LLAMA
        | SMALL
        | {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            # Wider than hidden_size, as Mistral Nemo's heads together are.
            "head_dim": 32,
            "sliding_window": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    )
    make(folder, settings, seed=5, eos=2, without=[{"sliding_window": None}, {"sliding_window": 17}])


def qwen2(folder):
    specials = [
        Special("<|endoftext|>"),
        Special("<|im_start|>"),
        Special("<|im_end|>"),
        Special("<tool_call>", False),
    ]
    tokenizer = vocabulary.byte_level(vocabulary.QWEN2, specials, compose=True)
    named = [
        {"name": "tool_use", "template": templates.TOOLS},
        {"name": "default", "template": templates.CHATML},
    ]
    cases.write_tokenizer(
        folder, tokenizer, named, bos=None, eos="<|im_end|>", pad="<|endoftext|>", add_bos_token=False
    )
    ends = [cases.id_of(tokenizer, token) for token in ("<|im_end|>", "<|endoftext|>")]
    settings = LLAMA | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_window_layers": 1,
        "sliding_window": 8,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "bos_token_id": ends[1],
        "eos_token_id": ends[0],
        # The embedding is longer than the vocabulary.
        "vocab_size": 320,
    }
    make(folder, settings, seed=6, eos=ends, without=[{"use_sliding_window": True, "max_window_layers": 0}])
    write_vocabulary = gguf_files.byte_level(
        cases.padded(tokenizer, 320), "qwen2", bos="<|endoftext|>", eos="<|im_end|>", add_bos=False
    )
    make_gguf(folder, "qwen2", write_vocabulary, templates.CHATML, matrices=Type.Q8_0, adds_bos=False)


def qwen3(folder):
    specials = [Special("<|endoftext|>"), Special("<|im_start|>"), Special("<|im_end|>")]
    specials += [Special("<think>", False), Special("</think>", False)]
    tokenizer = vocabulary.byte_level(vocabulary.QWEN2, specials, compose=True)
    cases.write_tokenizer(
        folder,
        tokenizer,
        templates.THINKING,
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        add_bos_token=False,
    )
    ends = [cases.id_of(tokenizer, token) for token in ("<|im_end|>", "<|endoftext|>")]
    settings = (
        LLAMA
        | SMALL
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 32,
            "max_window_layers": 2,
            "sliding_window": None,
            "use_sliding_window": False,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "bos_token_id": ends[1],
            "eos_token_id": ends[0],
        }
    )
    make(folder, settings, seed=7, eos=ends, without=[{"rope_theta": 10000.0}])
    write_vocabulary = gguf_files.byte_level(
        tokenizer, "qwen2", bos="<|endoftext|>", eos="<|im_end|>", add_bos=False
    )
    make_gguf(folder, "qwen3", write_vocabulary, templates.THINKING, matrices=Type.BF16, adds_bos=False)


def smollm3(folder):
    specials = [
        Special("<|begin_of_text|>"),
        Special("<|end_of_text|>"),
        Special("<|im_start|>"),
        Special("<|im_end|>"),
    ]
    specials += [Special("<think>", False), Special("</think>", False)]
    tokenizer = vocabulary.byte_level(vocabulary.LLAMA3, specials, whole_words=True)
    cases.write_tokenizer(folder, tokenizer, templates.MARKED, bos=None, eos="<|im_end|>", jinja=True)
    end = cases.id_of(tokenizer, "<|im_end|>")
    settings = (
        LLAMA
        | SMALL
        | {
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "num_hidden_layers": 4,
            "pad_token_id": end,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "layer_types": ["full_attention"] * 4,
            "use_sliding_window": False,
            "sliding_window": None,
            "rms_norm_eps": 1e-06,
            "rope_theta": 5000000.0,
            "tie_word_embeddings": True,
            "bos_token_id": cases.id_of(tokenizer, "<|begin_of_text|>"),
            "eos_token_id": end,
        }
    )
    make(
        folder,
        settings,
        seed=8,
        eos=end,
        without=[{"no_rope_layers": [1, 1, 1, 1]}, {"no_rope_layers": [1, 1, 0, 1]}],
    )


PHI3 = (
    LLAMA
    | SMALL
    | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "original_max_position_embeddings": 256,
        "sliding_window": 24,
        "torch_dtype": "float16",
    }
)
PHI3_MARKS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]


def phi3(folder):
    pieces = vocabulary.pieces()
    pieces.add(Special(token, rstrip=token != "<|endoftext|>") for token in PHI3_MARKS)
    next(special for special in pieces.specials if special.content == "</s>").rstrip = True
    tokenizer = vocabulary.sentencepiece_json(pieces, "prepend", bos=None)
    cases.write_tokenizer(
        folder, tokenizer, templates.PHI, bos="<s>", eos="<|endoftext|>", unk="<unk>", add_bos_token=False
    )
    ends = [pieces.id(token) for token in ("<|endoftext|>", "<|assistant|>", "<|end|>")]
    settings = PHI3 | {
        "bos_token_id": 1,
        "eos_token_id": ends[0],
        "pad_token_id": ends[0],
        "num_key_value_heads": 2,
    }
    make(folder, settings, seed=9, eos=ends, without=[{"sliding_window": None}])
    write_vocabulary = gguf_files.sentencepiece(pieces, eos="<|endoftext|>", add_bos=False)
    # llama.cpp knows by the name that marks take the white space after them.
    make_gguf(
        folder,
        "phi3",
        write_vocabulary,
        templates.PHI,
        pieces=pieces,
        prefix=True,
        adds_bos=False,
        name="phi3",
    )


def phi3_longrope(folder):
    tokenizer = vocabulary.byte_level(vocabulary.GPT4O, [Special(token) for token in PHI3_MARKS], merges=20)
    cases.write_tokenizer(folder, tokenizer, templates.PHI, bos="<|endoftext|>", eos="<|endoftext|>")
    ends = [cases.id_of(tokenizer, token) for token in ("<|endoftext|>", "<|end|>")]
    # Three quarters of a head are rotated.
    rotated = 16 * 3 // 4 // 2
    settings = PHI3 | {
        "torch_dtype": "float32",
        "sliding_window": None,
        "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 32,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [round(1.0 + 0.1 * index, 2) for index in range(rotated)],
            "long_factor": [round(1.1 * 1.7**index, 2) for index in range(rotated)],
        },
        "bos_token_id": ends[0],
        "eos_token_id": ends[0],
        "pad_token_id": ends[0],
    }
    scaling = settings["rope_scaling"]
    short = {"rope_scaling": scaling | {"long_factor": scaling["short_factor"]}}
    make(folder, settings, seed=10, eos=ends, without=[{"rope_scaling": None}, short])
    write_vocabulary = gguf_files.byte_level(tokenizer, "gpt-4o", bos="<|endoftext|>", eos="<|end|>")
    make_gguf(folder, "phi3", write_vocabulary, templates.PHI, matrices=Type.F32, adds_bos=False)


def gemma3(folder):
    own = ["<start_of_turn>", "<end_of_turn>"]
    pieces = vocabulary.pieces(dummy_prefix=False, gemma=True, user_defined_symbols=[*own, "\n\n", "<table>"])
    pieces.add([*(Special(token) for token in own), Special("\n\n", False), Special("<table>", False)])
    tokenizer = vocabulary.sentencepiece_json(pieces, "none", bos="<bos>")
    cases.write_tokenizer(
        folder, tokenizer, templates.TURNS, bos="<bos>", eos="<eos>", unk="<unk>", add_bos_token=True
    )
    ends = [pieces.id("<eos>"), pieces.id("<end_of_turn>")]
    settings = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": pieces.id("<bos>"),
        "eos_token_id": ends,
        "pad_token_id": 0,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000.0,
        "sliding_window": 16,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
    }
    without = [{"rope_scaling": None}, {"sliding_window": 17}, {"sliding_window_pattern": 7}]
    make(folder, settings, seed=11, eos=ends, without=[*without, {"query_pre_attn_scalar": 16}])
    write_vocabulary = gguf_files.sentencepiece(
        pieces, bos="<bos>", eos="<eos>", space_prefix=False, eot="<end_of_turn>"
    )
    # A file has no place for the scalar.
    make_gguf(
        folder,
        "gemma3",
        write_vocabulary,
        templates.TURNS,
        pieces=pieces,
        adds_bos=True,
        query_pre_attn_scalar=16,
    )


def unigram(folder):
    """A vocabulary only: SentencePiece's unigram, with characters to normalise."""
    rules = folder / "rules.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    # ½ to 1/2, ﬁ to fi, a no-break space to a space; a zero-width space goes.
    rules.write_text("BD\t31 2F 32\nFB01\t66 69\nA0\t20\n200B\t\n")
    pieces = vocabulary.pieces(
        "unigram",
        size=400,
        normalization_rule_name="",
        normalization_rule_tsv=str(rules),
        remove_extra_whitespaces=True,
        split_digits=False,
    )
    rules.unlink()
    model = proto.ModelProto.FromString(pieces.processor.serialized_model_proto())
    charsmap = model.normalizer_spec.precompiled_charsmap
    write = gguf_files.sentencepiece(pieces, model="t5", space_prefix=True, charsmap=charsmap)
    writer = gguf.GGUFWriter(folder / "model.gguf", "t5")
    write(writer)
    writer.add_remove_extra_whitespaces(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # What reads like a byte's piece is taken for it, as Hugging Face's implementation does.
    texts = [text for text in cases.TEXTS if "<0x" not in text]
    texts += cases.special_texts([special.content for special in pieces.specials])
    value = {
        "vocab_size": len(pieces.tokens),
        "end_of_generation": [pieces.id("</s>")],
        "added_bos": None,
        "cases": cases.piece_cases(pieces, texts, True),
    }
    network.write_json(folder / "tokenizer_cases.json", value)


FAMILIES = {
    "llama2": llama2,
    "llama3": llama3,
    "llama-linear": llama_linear,
    "llama-yarn": llama_yarn,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "smollm3": smollm3,
    "phi3": phi3,
    "phi3-longrope": phi3_longrope,
    "gemma3": gemma3,
    "unigram-gguf": unigram,
}


def main():
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or FAMILIES:
        shutil.rmtree(HERE / name, ignore_errors=True)
        FAMILIES[name](HERE / name)


if __name__ == "__main__":
    main()
