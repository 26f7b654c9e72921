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

TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
]
ARGUMENTS = {"place": "Köln \"am Rhein\"", "days": 2, "more": [1.5, None, True, {}]}


def calls(*names):
    arguments = {"get_weather": ARGUMENTS, "now": {}}
    return [
        {"id": f"call0000{number}", "name": name, "arguments": json.dumps(arguments[name])}
        for number, name in enumerate(names)
    ]


def result(number, content):
    return {"role": "tool", "content": content, "tool_call_id": f"call0000{number}"}


# As a job has them: see `as_transformers_takes`.
CONVERSATIONS_WITH_TOOLS = [
    [{"role": "user", "content": "What is the weather in Köln?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the weather in Köln?"},
        {"role": "assistant", "content": "", "tool_calls": calls("get_weather")},
        result(0, '{"sky": "<blue>"}'),
    ],
    [
        {"role": "user", "content": "Weather and time?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls("get_weather", "now")},
        result(0, "rain"),
        result(1, "12:00"),
        {"role": "assistant", "content": "It rains at noon."},
        {"role": "user", "content": "Thanks"},
    ],
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
    conversations = [(messages, []) for messages in CONVERSATIONS]
    if "tools" in tokenizer.get_chat_template():
        conversations += [(messages, tools) for messages in CONVERSATIONS_WITH_TOOLS for tools in (TOOLS, [])]
    cases = []
    for messages, tools in conversations:
        for variables in ({}, {"enable_thinking": False}, {"date_string": "1 Jan 2000"}):
            case = {"messages": messages, "tools": tools, "variables": variables}
            try:
                try:
                    prompt = render(tokenizer, messages, tools, variables)
                except jinja2.exceptions.TemplateError:
                    if messages not in CONVERSATIONS_WITH_TOOLS:
                        raise
                    prompt = render(tokenizer, parted(messages), tools, variables)
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


def render(tokenizer, messages, tools, variables):
    return tokenizer.apply_chat_template(
        as_transformers_takes(messages),
        tools=[{"type": "function", "function": tool} for tool in tools] or None,
        tokenize=False,
        add_generation_prompt=True,
        **variables,
    )


def parted(messages):
    """Each call in a message of its own, its result behind it."""
    results = {message["tool_call_id"]: message for message in messages if message["role"] == "tool"}
    turns = []
    for message in messages:
        if message["role"] != "tool":
            calls = message.get("tool_calls", [])
            for call in calls:
                turns += [message | {"tool_calls": [call]}, results[call["id"]]]
            turns += [] if calls else [message]
    return turns


def as_transformers_takes(messages):
    """Calls with arguments as objects, and results with the names of their functions."""
    names, turns = {}, []
    for message in messages:
        turn = dict(message)
        for call in message.get("tool_calls", []):
            names[call["id"]] = call["name"]
        if "tool_calls" in turn:
            turn["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.loads(call["arguments"])},
                }
                for call in message["tool_calls"]
            ]
        if turn["role"] == "tool":
            turn["name"] = names[turn["tool_call_id"]]
        turns.append(turn)
    return turns


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
