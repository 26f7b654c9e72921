"""Structured output by instructor: by tools, and by a JSON schema."""

import instructor
import openai
from common import MODEL, WEATHER_QUESTION, Weather, check, main

OPTIONS = {"model": MODEL, "messages": WEATHER_QUESTION, "temperature": 0, "max_tokens": 120, "max_retries": 0}


def client(mode):
    return instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)


@check
def tools():
    answer = client(instructor.Mode.TOOLS).create(**OPTIONS, response_model=Weather)
    assert isinstance(answer, Weather)
    return answer.model_dump()


@check
def tools_strict():
    answer = client(instructor.Mode.TOOLS_STRICT).create(**OPTIONS, response_model=Weather)
    assert isinstance(answer, Weather)
    return answer.model_dump()


@check
def json_schema():
    answer = client(instructor.Mode.JSON_SCHEMA).create(**OPTIONS, response_model=Weather)
    assert isinstance(answer, Weather)
    return answer.model_dump()


@check
def with_completion():
    answer, completion = client(instructor.Mode.TOOLS).create_with_completion(**OPTIONS, response_model=Weather)
    (call,) = completion.choices[0].message.tool_calls
    assert Weather.model_validate_json(call.function.arguments).model_dump() == answer.model_dump()


@check
def partial():
    *_, last = client(instructor.Mode.TOOLS).create_partial(**OPTIONS, response_model=Weather)
    whole = client(instructor.Mode.TOOLS).create(**OPTIONS, response_model=Weather)
    assert last.model_dump() == whole.model_dump()


main()
