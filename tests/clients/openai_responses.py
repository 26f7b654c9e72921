"""The Responses API by the openai package, in its own idioms."""

import time

import openai
from common import MODEL, WEATHER_TOOL, Weather, check, is_answered, is_weather, main, raises

client = openai.OpenAI(max_retries=0)
OPTIONS = {"model": MODEL, "input": "What is the capital of France?", "temperature": 0, "max_output_tokens": 24, "store": False}
TOOL = {"type": "function", **WEATHER_TOOL["function"]}


@check
def text():
    answer = client.responses.create(**OPTIONS, instructions="You are a helpful assistant.")
    assert answer.object == "response" and answer.id.startswith("resp_"), answer
    assert answer.status in ("completed", "incomplete"), answer
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    items = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": OPTIONS["input"]}]
    same = client.responses.create(**{**OPTIONS, "input": items})
    assert same.output_text == answer.output_text
    return is_answered(answer.output_text)


@check
def stream():
    whole = client.responses.create(**OPTIONS)
    told, kinds, numbers = "", [], []
    for event in client.responses.create(**OPTIONS, stream=True):
        kinds.append(event.type)
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            told += event.delta
    assert told == whole.output_text
    assert kinds[0] == "response.created", kinds
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds
    assert numbers == sorted(set(numbers)), numbers
    with client.responses.stream(**OPTIONS) as events:
        for _ in events:
            pass
        final = events.get_final_response()
    assert final.output_text == whole.output_text


@check
def tools():
    options = {**OPTIONS, "input": "How will the weather in Rome be?", "tools": [TOOL], "tool_choice": "required", "max_output_tokens": 120, "parallel_tool_calls": False}
    answer = client.responses.create(**options)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather" and call.call_id.startswith("call_"), call
    is_weather(call.arguments)
    arguments = ""
    for event in client.responses.create(**options, stream=True):
        if event.type == "response.function_call_arguments.delta":
            arguments += event.delta
    assert arguments == call.arguments
    items = [
        {"role": "user", "content": options["input"]},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
    ]
    answer = client.responses.create(**{**options, "input": items, "tool_choice": "none", "max_output_tokens": 16})
    assert answer.output_text, answer


@check
def parse():
    answer = client.responses.parse(**{**OPTIONS, "max_output_tokens": 120}, text_format=Weather)
    assert isinstance(answer.output_parsed, Weather), answer
    return answer.output_parsed.model_dump()


@check
def background():
    whole = client.responses.create(**OPTIONS)
    # Whether a response is kept is said by `background`, and for how long by the server.
    begun = client.responses.create(**OPTIONS, background=True)
    assert begun.status in ("queued", "in_progress", "completed", "incomplete"), begun
    for _ in range(400):
        if begun.status not in ("queued", "in_progress"):
            break
        time.sleep(0.05)
        begun = client.responses.retrieve(begun.id)
    assert begun.output_text == whole.output_text, begun
    events = list(client.responses.retrieve(begun.id, stream=True))
    middle = events[len(events) // 2].sequence_number
    rest = list(client.responses.retrieve(begun.id, stream=True, starting_after=middle))
    assert [event.sequence_number for event in rest] == [e.sequence_number for e in events if e.sequence_number > middle]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text


@check
def cancelled():
    begun = client.responses.create(**{**OPTIONS, "max_output_tokens": 4000, "extra_body": {"ignore_eos": True}}, background=True)
    ended = client.responses.cancel(begun.id)
    for _ in range(400):
        if ended.status == "cancelled":
            break
        time.sleep(0.05)
        ended = client.responses.retrieve(begun.id)
    assert ended.status == "cancelled", ended


@check
def refused():
    for options, code in [
        ({"previous_response_id": "resp_1"}, "unsupported_parameter"),
        ({"temperature": 3}, "invalid_value"),
    ]:
        error = raises(openai.BadRequestError, lambda: client.responses.create(**{**OPTIONS, **options}))
        assert [error.status_code, error.code, error.param] == [400, code, next(iter(options))], error
    error = raises(openai.NotFoundError, lambda: client.responses.retrieve("resp_" + "0" * 32))
    assert [error.status_code, error.code, error.param] == [404, "not_found", None], error


main()
