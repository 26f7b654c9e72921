"""Functions and structured output by the openai package, in its own idioms."""

from typing import Literal

import openai
from common import MODEL, WEATHER_QUESTION, WEATHER_TOOL, Weather, check, is_weather, main
from pydantic import BaseModel

client = openai.OpenAI(max_retries=0)
OPTIONS = {"model": MODEL, "messages": WEATHER_QUESTION, "temperature": 0, "max_tokens": 120}
TOOLS = {**OPTIONS, "tools": [WEATHER_TOOL], "tool_choice": "required", "parallel_tool_calls": False}


class Place(BaseModel):
    name: Literal["hill", "lake"]
    size: Literal[1, 2, 3]


class Journey(BaseModel):
    places: list[Place]
    by: Literal["train", "bicycle"]
    again: bool | None


class Trip(BaseModel):
    """One that even a silly model brings to an end."""

    first: Place
    by: Literal["train", "bicycle"]
    again: bool | None


def one_call(message):
    (call,) = message.tool_calls
    assert call.type == "function" and call.id.startswith("call_"), call
    assert call.function.name == "weather"
    is_weather(call.function.arguments)
    return call


@check
def calls():
    whole = client.chat.completions.create(**TOOLS).choices[0]
    assert whole.finish_reason == "tool_calls", whole
    assert whole.message.content is None, whole
    one_call(whole.message)
    named = {"type": "function", "function": {"name": "weather"}}
    choice = client.chat.completions.create(**{**TOOLS, "tool_choice": named}).choices[0]
    assert choice.finish_reason == "stop", choice
    one_call(choice.message)
    none = client.chat.completions.create(**{**TOOLS, "tool_choice": "none", "max_tokens": 8}).choices[0]
    assert none.message.content and not none.message.tool_calls, none


@check
def streamed_calls():
    whole = client.chat.completions.create(**TOOLS).choices[0].message.tool_calls[0]
    name, arguments, ids, pieces, finish = "", "", [], 0, None
    for chunk in client.chat.completions.create(**TOOLS, stream=True):
        choice = chunk.choices[0]
        finish = choice.finish_reason or finish
        assert not choice.delta.content, chunk
        for call in choice.delta.tool_calls or []:
            assert call.index == 0
            ids += [call.id] if call.id else []
            name += call.function.name or ""
            arguments += call.function.arguments or ""
            pieces += 1
    assert (name, arguments, finish) == ("weather", whole.function.arguments, "tool_calls")
    assert len(ids) == 1 and ids[0].startswith("call_")
    assert pieces > 2, "arguments come in pieces"


@check
def stream_helper():
    tool = openai.pydantic_function_tool(Weather)
    arguments = ""
    options = {**TOOLS, "tools": [tool]}
    with client.chat.completions.stream(**options) as events:
        for event in events:
            if event.type == "tool_calls.function.arguments.delta":
                arguments += event.arguments_delta
            elif event.type == "tool_calls.function.arguments.done":
                assert arguments == event.arguments
                assert isinstance(event.parsed_arguments, Weather)
        final = events.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert call.function.name == "Weather" and call.function.arguments == arguments
    assert isinstance(call.function.parsed_arguments, Weather)


@check
def round_trip():
    call = one_call(client.chat.completions.create(**TOOLS).choices[0].message)
    messages = [
        *WEATHER_QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny on all days."},
    ]
    options = {**TOOLS, "messages": messages, "tool_choice": "none", "max_tokens": 24}
    whole = client.chat.completions.create(**options)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**options, stream=True))
    assert whole.choices[0].message.content == said != ""
    alone = client.chat.completions.create(**{**options, "messages": messages[:1]})
    assert whole.usage.prompt_tokens > alone.usage.prompt_tokens, "the call and its result are in the prompt"
    # A result that belongs to no call.
    try:
        client.chat.completions.create(**{**options, "messages": [messages[0], {**messages[2], "tool_call_id": "call_x"}]})
    except openai.BadRequestError as error:
        assert error.param.startswith("messages[1]"), error
    else:
        raise AssertionError("a result without a call was taken")


@check
def parallel_calls():
    several = client.chat.completions.create(**{**TOOLS, "parallel_tool_calls": True, "max_tokens": 400})
    calls = several.choices[0].message.tool_calls
    assert len({call.id for call in calls}) == len(calls) >= 1
    if several.choices[0].finish_reason == "tool_calls":
        for call in calls:
            is_weather(call.function.arguments)
    return len(calls)


@check
def parse():
    answer = client.chat.completions.parse(**OPTIONS, response_format=Trip).choices[0].message
    assert isinstance(answer.parsed, Trip), answer
    tool = openai.pydantic_function_tool(Weather)
    called = client.chat.completions.parse(**{**TOOLS, "tools": [tool]}).choices[0].message
    assert isinstance(called.tool_calls[0].function.parsed_arguments, Weather), called
    # What is cut off by max_tokens is no answer, and the client says so.
    try:
        client.chat.completions.parse(**{**OPTIONS, "max_tokens": 3}, response_format=Journey)
    except openai.LengthFinishReasonError:
        pass
    else:
        raise AssertionError("three tokens can't be a journey")
    return answer.parsed.model_dump()


@check
def parse_stream():
    whole = client.chat.completions.parse(**OPTIONS, response_format=Trip).choices[0].message
    with client.chat.completions.stream(**OPTIONS, response_format=Trip) as events:
        snapshots = [event.snapshot for event in events if event.type == "content.delta"]
        final = events.get_final_completion().choices[0].message
    assert final.parsed == whole.parsed and final.content == whole.content == snapshots[-1]


@check
def response_formats():
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
    }
    answer = client.chat.completions.create(**OPTIONS, response_format=schema)
    assert answer.choices[0].message.content.strip().startswith("{"), answer
    anything = client.chat.completions.create(**OPTIONS, response_format={"type": "json_object"})
    assert anything.choices[0].message.content.lstrip().startswith("{"), anything


main()
