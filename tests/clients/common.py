"""What the clients' scripts share: a model, questions, and `@check`, which marks what main() runs.

A check raises where something is not as it must be. main() prints a line for each: its name, how
long it took, what it returned.
"""

import json
import os
import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MODEL = "vllm-primary"
# A model that exists and that no worker serves.
ABSENT = "absent"
BASE_URL = os.environ["OPENAI_BASE_URL"]
API_KEY = os.environ["OPENAI_API_KEY"]

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
WEATHER_QUESTION = [{"role": "user", "content": "How will the weather in Rome be on the next three days?"}]


class Weather(BaseModel):
    """Tells the weather in a city."""

    # So small that the tiniest model comes to the end of it.
    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    days: Annotated[int, Field(ge=1, le=9)]


WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}

_checks = []


def check(function):
    """Marks a check."""
    _checks.append(function)
    return function


def main():
    """Runs all checks in order."""
    for function in _checks:
        begun = time.monotonic()
        print(function.__name__, end=" ", flush=True)
        seen = function()
        print(f"{time.monotonic() - begun:.1f} s", "" if seen is None else json.dumps(seen), flush=True)


def is_answered(text):
    """The answer to the question that each client asks, which the model knows."""
    assert "Paris" in text, text
    return text


def is_weather(arguments):
    """The arguments of a call of the weather tool, validated; takes JSON or an object."""
    weather = Weather.model_validate_json(arguments) if isinstance(arguments, str) else Weather.model_validate(arguments)
    return weather.model_dump()


def raises(exception, call):
    """The exception that `call` raises, which must be of this very class."""
    try:
        call()
    except Exception as error:
        assert type(error) is exception, (exception, error)
        return error
    raise AssertionError(f"{exception.__name__} was not raised")
