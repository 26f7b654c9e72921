"""The same models as GGUF files, with the names, layouts and settings that converters write."""

import math

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensor_name(architecture, name):
    module, kind = name.rsplit(".", 1)
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    _, _, layer, inner = module.split(".", 3)
    names = GEMMA_NAMES if architecture == "gemma3" else NAMES
    return f"blk.{layer}.{names[inner]}.{kind}"


def permute(weight, heads):
    """Rotary halves to interleaved pairs, which is how files of the llama architecture have them."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight, heads):
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, architecture, config, weights, vocabulary, template, *, name, matrices):
    """Writes the file; returns the weights as a reader of it has them, under transformers' names."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    add_settings(writer, architecture, config)
    add_rope(writer, architecture, config)
    vocabulary(writer)
    if template is not None:
        writer.add_chat_template(template)
    stored = {}
    for name, weight in weights.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        heads = heads.get(name.split(".")[-2]) if architecture == "llama" else None
        value = weight.numpy()
        value = permute(value, heads) if heads else value
        # Gemma's norms multiply by one more than the weight; files have the sum.
        shift = 1.0 if architecture == "gemma3" and "norm" in name else 0.0
        value = np.ascontiguousarray(value + shift, dtype=np.float32)
        kind = matrices if value.ndim == 2 else Type.F32
        data = gguf.quants.quantize(value, kind)
        writer.add_tensor(tensor_name(architecture, name), data, raw_dtype=kind)
        value = gguf.quants.dequantize(data, kind).reshape(value.shape) - shift
        value = unpermute(value, heads) if heads else value
        stored[name] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def add_settings(writer, architecture, config):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture in ("llama", "phi3"):
        share = config.rope_parameters.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(head_dim * share))
    if architecture in ("phi3", "gemma3"):
        writer.add_sliding_window(config.sliding_window or 0)


def add_rope(writer, architecture, config):
    parameters = config.rope_parameters
    parameters = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(parameters["rope_theta"])
    kind = parameters["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(parameters["factor"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config, parameters), raw_dtype=Type.F32)
    elif architecture == "phi3":
        add_longrope(writer, config, parameters)


def llama3_divisors(config, parameters):
    """What each rotary frequency is divided by."""
    size = config.head_dim
    divisors = []
    for index in range(0, size, 2):
        wavelength = 2 * math.pi * parameters["rope_theta"] ** (index / size)
        rotations = parameters["original_max_position_embeddings"] / wavelength
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        smooth = min(max((rotations - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / parameters["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)


def add_longrope(writer, config, parameters):
    original = config.original_max_position_embeddings
    writer.add_rope_scaling_orig_ctx_len(original)
    if parameters["rope_type"] != "longrope":
        return
    scale = config.max_position_embeddings / original
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    for length in ("long", "short"):
        factors = np.array(parameters[f"{length}_factor"], dtype=np.float32)
        writer.add_tensor(f"rope_factors_{length}.weight", factors, raw_dtype=Type.F32)


def byte_level(tokenizer, pre, *, bos=None, eos=None, add_bos=None):
    """Writes the vocabulary of a tokenizer.json with byte-level BPE."""

    def add(writer):
        ids = dict(tokenizer["model"]["vocab"])
        types = dict.fromkeys(ids, NORMAL)
        for token in tokenizer["added_tokens"]:
            ids[token["content"]] = token["id"]
            kind = UNUSED if token.get("unused") else CONTROL if token["special"] else USER_DEFINED
            types[token["content"]] = kind
        tokens = sorted(ids, key=ids.get)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([types[token] for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
        if bos is not None:
            writer.add_bos_token_id(ids[bos])
        if eos is not None:
            writer.add_eos_token_id(ids[eos])
        if add_bos is not None:
            writer.add_add_bos_token(add_bos)

    return add


def sentencepiece(
    pieces, *, model="llama", bos="<s>", eos="</s>", space_prefix=None, add_bos=None, eot=None, charsmap=None
):
    """Writes a SentencePiece vocabulary."""

    def add(writer):
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre("default")
        writer.add_token_list([token.encode() for token in pieces.tokens])
        writer.add_token_scores(pieces.scores)
        writer.add_token_types(pieces.types)
        writer.add_bos_token_id(pieces.id(bos))
        writer.add_eos_token_id(pieces.id(eos))
        writer.add_unk_token_id(pieces.id("<unk>"))
        if eot is not None:
            writer.add_eot_token_id(pieces.id(eot))
        if space_prefix is not None:
            writer.add_add_space_prefix(space_prefix)
        if add_bos is not None:
            writer.add_add_bos_token(add_bos)
        if charsmap is not None:
            writer.add_precompiled_charsmap(charsmap)

    return add
