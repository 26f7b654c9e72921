"""litellm's client, which knows the server as one that is compatible with OpenAI."""

import asyncio

import litellm
from common import ABSENT, API_KEY, BASE_URL, MESSAGES, MODEL, WEATHER_QUESTION, WEATHER_TOOL, Weather, check, is_answered, is_weather, main, raises

litellm.drop_params = False
OPTIONS = {
    "model": f"openai/{MODEL}",
    "api_base": BASE_URL,
    "api_key": API_KEY,
    "messages": MESSAGES,
    "temperature": 0,
    "max_tokens": 24,
    "num_retries": 0,
    "max_retries": 0,
}
TOOLS = {**OPTIONS, "messages": WEATHER_QUESTION, "tools": [WEATHER_TOOL], "tool_choice": "required", "max_tokens": 120, "parallel_tool_calls": False}


@check
def text():
    answer = litellm.completion(**OPTIONS)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].finish_reason in ("stop", "length")
    return is_answered(answer.choices[0].message.content)


@check
def stream():
    whole = litellm.completion(**OPTIONS)
    chunks = list(litellm.completion(**OPTIONS, stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert built.choices[0].message.content == whole.choices[0].message.content
    assert built.usage.completion_tokens == whole.usage.completion_tokens


@check
def asynchronous():
    async def ask():
        whole, stream = await asyncio.gather(litellm.acompletion(**OPTIONS), litellm.acompletion(**OPTIONS, stream=True))
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content, "".join(pieces)

    whole, pieces = asyncio.run(ask())
    assert whole == pieces


@check
def tools():
    whole = litellm.completion(**TOOLS).choices[0]
    (call,) = whole.message.tool_calls
    assert (whole.finish_reason, call.function.name) == ("tool_calls", "weather")
    is_weather(call.function.arguments)
    chunks = list(litellm.completion(**TOOLS, stream=True))
    built = litellm.stream_chunk_builder(chunks, messages=WEATHER_QUESTION).choices[0].message
    assert built.tool_calls[0].function.arguments == call.function.arguments
    messages = [*WEATHER_QUESTION, whole.message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    assert litellm.completion(**{**TOOLS, "messages": messages, "tool_choice": "none", "max_tokens": 8}).choices[0].message.content


@check
def structured_output():
    answer = litellm.completion(**{**OPTIONS, "messages": WEATHER_QUESTION, "max_tokens": 120}, response_format=Weather)
    return is_weather(answer.choices[0].message.content)


@check
def text_completion():
    options = {name: OPTIONS[name] for name in ("api_base", "api_key", "temperature")}
    answer = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="The capital of France is", max_tokens=8, **options)
    assert answer.choices[0].text


@check
def errors():
    def refused(exception, **options):
        return raises(exception, lambda: litellm.completion(**{**OPTIONS, **options})).status_code

    assert refused(litellm.BadRequestError, temperature=3) == 400
    assert refused(litellm.ContextWindowExceededError, max_tokens=100000) == 400
    assert refused(litellm.NotFoundError, model="openai/no-such-model") == 404
    assert refused(litellm.ServiceUnavailableError, model=f"openai/{ABSENT}") == 503
    assert refused(litellm.AuthenticationError, api_key="wrong") == 401


main()
