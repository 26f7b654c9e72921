"""Chat and legacy completions by the openai package, in its own idioms, synchronous and not."""

import asyncio

import openai
from common import MESSAGES, MODEL, check, is_answered, main

client = openai.OpenAI(max_retries=0)
OPTIONS = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
SEEDED = {**OPTIONS, "temperature": 1.0, "seed": 11, "top_p": 0.9, "stop": ["\n"]}


@check
def models():
    listed = [model.id for model in client.models.list()]
    assert MODEL in listed, listed
    assert client.models.retrieve(MODEL).id == MODEL


@check
def text():
    whole = client.chat.completions.create(**OPTIONS)
    assert whole.object == "chat.completion"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.choices[0].message.role == "assistant"
    return is_answered(whole.choices[0].message.content)


@check
def stream():
    whole = client.chat.completions.create(**OPTIONS)
    pieces, usage, finish = [], None, None
    for chunk in client.chat.completions.create(**OPTIONS, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        assert usage is None, "usage comes last"
        usage = chunk.usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert "".join(pieces) == whole.choices[0].message.content, pieces
    # What comes from the cache differs, which only the details tell.
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0, usage
    assert finish == whole.choices[0].finish_reason


@check
def stream_helper():
    whole = client.chat.completions.create(**OPTIONS)
    told = ""
    with client.chat.completions.stream(**OPTIONS) as events:
        for event in events:
            if event.type == "content.delta":
                told = event.snapshot
        final = events.get_final_completion()
    assert told == final.choices[0].message.content == whole.choices[0].message.content


@check
def asynchronous():
    async def ask():
        async with openai.AsyncOpenAI(max_retries=0) as asynchronous_client:
            ask = asynchronous_client.chat.completions.create
            first, second, stream = await asyncio.gather(
                ask(**SEEDED), ask(**SEEDED), ask(**SEEDED, stream=True)
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return first.choices[0].message.content, second.choices[0].message.content, "".join(pieces)

    first, second, pieces = asyncio.run(ask())
    assert first == second == pieces, (first, second, pieces)


@check
def choices_and_log_probabilities():
    several = {**SEEDED, "n": 3, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**several).choices
    assert [choice.index for choice in whole] == [0, 1, 2]
    assert whole[0].message.content == client.chat.completions.create(**SEEDED).choices[0].message.content
    said, told, ends = ["", "", ""], [[], [], []], [None, None, None]
    for chunk in client.chat.completions.create(**several, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            told[choice.index] += choice.logprobs.content if choice.logprobs else []
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    for choice in whole:
        tokens = choice.logprobs.content
        assert said[choice.index] == choice.message.content
        assert [token.model_dump() for token in told[choice.index]] == [token.model_dump() for token in tokens]
        assert ends[choice.index] == choice.finish_reason
        text = b"".join(bytes(token.bytes or []) for token in tokens).decode(errors="replace")
        # The tokens of the stop string are there, its text is not.
        assert text.startswith(choice.message.content), (text, choice.message.content)
        for token in tokens:
            assert token.logprob <= 0 and len(token.top_logprobs) == 2
            assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


@check
def sampling_and_metadata():
    options = {
        **OPTIONS,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {"33": 100},
        "max_tokens": openai.omit,
        "max_completion_tokens": 3,
        "user": "ann",
        "metadata": {"purpose": "test"},
        "service_tier": "auto",
        "store": False,
        "extra_body": {"top_k": 1, "ignore_eos": True},
    }
    answer = client.chat.completions.create(**options)
    # Token 33 is "1".
    assert answer.choices[0].message.content == "111", answer
    assert answer.choices[0].finish_reason == "length"
    assert answer.metadata == {"purpose": "test"}
    assert answer.service_tier == "default"


@check
def message_forms():
    """The same conversation, in strings and in parts, as system and as developer."""
    plain = client.chat.completions.create(**OPTIONS)
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "You are a helpful "}, {"type": "text", "text": "assistant."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
    ]
    answer = client.chat.completions.create(**{**OPTIONS, "messages": parts})
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens
    assert answer.choices[0].message.content == plain.choices[0].message.content


@check
def legacy_completions():
    options = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**options)
    assert whole.object == "text_completion" and whole.id.startswith("cmpl-"), whole
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**options, stream=True) if chunk.choices]
    assert "".join(pieces) == whole.choices[0].text
    two = client.completions.create(**{**options, "prompt": [options["prompt"], "Two and two is"], "echo": True})
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == options["prompt"] + whole.choices[0].text
    probable = client.completions.create(**options, logprobs=2).choices[0].logprobs
    assert "".join(probable.tokens) == whole.choices[0].text
    assert len(probable.tokens) == len(probable.token_logprobs) == len(probable.top_logprobs) == len(probable.text_offset)
    return whole.choices[0].text


main()
