"""What transformers and sentencepiece make of texts and conversations."""

import copy
import json
from datetime import datetime, timezone

import jinja2
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

import network
import vocabulary

# When the chat cases are rendered: a Tuesday.
NOW = datetime(2026, 2, 3, 14, 5, 6, tzinfo=timezone.utc)

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    " \n\n  \t x \r\n y  ",
    "Hello",
    " Hello",
    "  Hello",
    "Hello ",
    "Hello, world! It's 2024: they're   here, aren't they?  I'VE.",
    "The river 12345 67 8.9% 1,000,000",
    "    for index in range(10):\n        total += values[index]\n\n\n# done\t\tx",
    "naïve façade, Grüße aus Köln; e\u0301 A\u030a ﬁ Ⅷ ½ №",
    "日本語のテキスト、中文。 한국어 русский ёж עברית हिन्दी ไทย",
    "🙂🚀👩‍👩‍👧 🇩🇪 →€ \u200b\u00a0\u3000 \u2028end",
    "\x00\x01\x7f\ufeff\ufffd",
    "▁▁ lower ▁ blocks▁",
    "<0x41> <0xZZ> <unk> [UNK] <|nothing|>",
    "HelloWorld camelCase XMLHttpRequest snake_case a/b//c",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "thethethe the the  the",
    "                                 x",
]

END_TOKENS = {
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
}

CONVERSATIONS = [
    [{"role": "user", "content": "Hello there"}],
    [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " What is 2 + 2?\n"}],
    [
        {"role": "system", "content": "Grüße 🙂 <b>&amp;\"'"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nlet me see\n</think>\n\n two"},
        {"role": "user", "content": "three"},
    ],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>hm</think>two"},
    ],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "system", "content": "/no_think nobody asks"}],
]


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


# Templates ask for the time through this name.
chat_template_utils.datetime = Clock


def id_of(tokenizer, content):
    return next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == content)


def padded(tokenizer, size):
    """With tokens that stand for rows of the embedding that no text uses."""
    tokenizer = copy.deepcopy(tokenizer)
    used = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
    for number in range(used, size):
        tokenizer["added_tokens"].append({"id": number, "content": f"[PAD{number}]", "unused": True})
    return tokenizer


def write_tokenizer(folder, tokenizer, template, *, bos, eos, unk=None, pad=None, jinja=False, **settings):
    folder.mkdir(parents=True)
    network.write_json(folder / "tokenizer.json", tokenizer)
    named = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    if unk is not None:
        # Older files hold whole tokens.
        named["unk_token"] = {
            "__type": "AddedToken",
            "content": unk,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
    config = {key: value for key, value in named.items() if value is not None or key == "bos_token"}
    config |= {
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    config |= settings
    if jinja:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        config["chat_template"] = template
    network.write_json(folder / "tokenizer_config.json", config, indent=2)


def write_cases(folder, ends):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    specials = list(tokenizer.get_added_vocab())
    texts = TEXTS + special_texts(specials)
    cases = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        cases.append({"text": text, "ids": ids, "decoded": decode(tokenizer, ids)})
    with_bos = (
        tokenizer.encode("x")[0] == tokenizer.bos_token_id if tokenizer.bos_token_id is not None else False
    )
    ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id} | named_ends(tokenizer)
    value = {
        "vocab_size": len(tokenizer),
        "end_of_generation": sorted(ends),
        "added_bos": tokenizer.bos_token_id if with_bos else None,
        "cases": cases,
    }
    network.write_json(folder / "tokenizer_cases.json", value)
    write_chat_cases(folder, tokenizer)


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def special_texts(specials):
    first, last = specials[0], specials[-1]
    return [
        first,
        f"{first}Hello{last}",
        f"{first} Hello {last} \n  there {last}{last}x",
        f"the {last[:-1]} {last[1:]}{last}\n\nx",
        "".join(f"{special}\n{special} a" for special in specials),
    ]


def named_ends(tokenizer):
    """Special tokens that end an answer in some family, whatever a model's files say."""
    return {token for content, token in tokenizer.get_added_vocab().items() if content in END_TOKENS}


def write_chat_cases(folder, tokenizer):
    cases = []
    for messages in CONVERSATIONS:
        for variables in ({}, {"enable_thinking": False}, {"date_string": "1 Jan 2000"}):
            case = {"messages": messages, "variables": variables}
            try:
                prompt = tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **variables
                )
                case |= {"prompt": prompt, "ids": tokenizer.encode(prompt, add_special_tokens=False)}
            except jinja2.exceptions.TemplateError as error:
                case["refused"] = error.message
            same = cases and [case.get(key) for key in ("prompt", "refused")] == [
                cases[-1].get(key) for key in ("prompt", "refused")
            ]
            if not (variables and same):
                cases.append(case)
    value = {"now": int(NOW.timestamp() * 1000), "cases": cases}
    network.write_json(folder / "chat_cases.json", value)


def write_gguf_cases(folder, target, pieces, prefix, adds_bos):
    """Byte-level tokenizers are the same in both; the reference for the others is sentencepiece."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = json.loads((folder / "tokenizer_cases.json").read_text(encoding="utf-8"))
    chats = json.loads((folder / "chat_cases.json").read_text(encoding="utf-8"))
    if pieces is not None:
        tokens["cases"] = piece_cases(pieces, [case["text"] for case in tokens["cases"]], prefix)
        for case in chats["cases"]:
            if "prompt" in case:
                case["ids"] = pieces.encode(case["prompt"])
    ends = {tokenizer.eos_token_id} | named_ends(tokenizer)
    tokens |= {
        "vocab_size": network.config_of(folder).vocab_size,
        "end_of_generation": sorted(ends),
        "added_bos": tokenizer.bos_token_id if adds_bos else None,
    }
    network.write_json(target / "tokenizer_cases.json", tokens)
    network.write_json(target / "chat_cases.json", chats)


def piece_cases(pieces, texts, prefix):
    encoded = [(text, pieces.encode(text)) for text in texts]
    return [{"text": text, "ids": ids, "decoded": read(pieces, ids, prefix)} for text, ids in encoded]


def read(pieces, ids, prefix):
    """What ids read: special tokens nothing, a space before the text goes where one was added."""
    text = b""
    for token in ids:
        kind, piece = pieces.types[token], pieces.tokens[token]
        if kind == vocabulary.BYTE:
            text += bytes([int(piece[3:5], 16)])
        elif kind in (vocabulary.NORMAL, vocabulary.USER_DEFINED):
            text += piece.replace(vocabulary.SPACE, " ").encode()
    text = text.removeprefix(b" ") if prefix else text
    return text.decode(errors="replace")
