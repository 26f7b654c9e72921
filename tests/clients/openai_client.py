"""Uses the openai package, unchanged, against the server at OPENAI_BASE_URL.

Prints one JSON object with what it saw; any surprise is an exception.
"""

import json

import openai

client = openai.OpenAI(max_retries=0)
MODEL = "vllm-primary"
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
OPTIONS = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 24}

models = [model.id for model in client.models.list()]
assert MODEL in models, models
assert client.models.retrieve(MODEL).id == MODEL

whole = client.chat.completions.create(**OPTIONS)
assert whole.object == "chat.completion"
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
assert whole.choices[0].message.role == "assistant"

pieces, usage, finish = [], None, None
for chunk in client.chat.completions.create(**OPTIONS, stream=True, stream_options={"include_usage": True}):
    assert chunk.object == "chat.completion.chunk"
    if chunk.usage:
        usage = chunk.usage
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
assert "".join(pieces) == whole.choices[0].message.content, pieces
# The repeated prompt comes from the cache, which only its details tell.
assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
assert usage.prompt_tokens_details.cached_tokens > 0, usage
assert finish == whole.choices[0].finish_reason

with client.chat.completions.stream(**OPTIONS) as stream:
    for _ in stream:
        pass
    final = stream.get_final_completion()
assert final.choices[0].message.content == whole.choices[0].message.content

seeded = {**OPTIONS, "temperature": 1.0, "seed": 11, "top_p": 0.9, "stop": ["\n"]}
first, second = (client.chat.completions.create(**seeded).choices[0].message.content for _ in range(2))
assert first == second

several = {**seeded, "n": 3, "logprobs": True, "top_logprobs": 2}
whole_choices = client.chat.completions.create(**several).choices
assert [choice.index for choice in whole_choices] == [0, 1, 2]
assert whole_choices[0].message.content == first
said, told, ends = ["", "", ""], [[], [], []], [None, None, None]
for chunk in client.chat.completions.create(**several, stream=True):
    for choice in chunk.choices:
        said[choice.index] += choice.delta.content or ""
        told[choice.index] += choice.logprobs.content if choice.logprobs else []
        ends[choice.index] = choice.finish_reason or ends[choice.index]
for choice in whole_choices:
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

errors = {}


def refused(name, exception, **options):
    try:
        client.chat.completions.create(**{**OPTIONS, **options})
    except exception as error:
        errors[name] = [error.status_code, error.code, error.param]
    else:
        raise AssertionError(f"{name} was not refused")


refused("temperature", openai.BadRequestError, temperature=3)
refused("top_logprobs", openai.BadRequestError, top_logprobs=2)
refused("unknown", openai.BadRequestError, extra_body={"no_such_parameter": 1})
refused("model", openai.NotFoundError, model="no-such-model")
try:
    openai.OpenAI(api_key="wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    errors["key"] = [error.status_code, error.code, error.param]

print(json.dumps({"version": openai.__version__, "text": whole.choices[0].message.content, "errors": errors}))
