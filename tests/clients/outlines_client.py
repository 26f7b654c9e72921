"""outlines: text, choices and JSON that are enforced, by its model for OpenAI and by that for vLLM."""

from typing import Literal

import openai
import outlines
from common import MESSAGES, MODEL, Weather, check, is_answered, is_weather, main

client = openai.OpenAI(max_retries=0)
OPTIONS = {"temperature": 0, "max_tokens": 120}
FORECAST = "How will the weather in Rome be on the next three days?"


@check
def text():
    for wrap in (outlines.from_openai, outlines.from_vllm):
        model = wrap(client, MODEL)
        whole = model(outlines.inputs.Chat(MESSAGES), **OPTIONS)
        assert "".join(model.stream(outlines.inputs.Chat(MESSAGES), **OPTIONS)) == whole
    return is_answered(whole)


@check
def structured_output():
    seen = []
    for wrap in (outlines.from_openai, outlines.from_vllm):
        seen.append(is_weather(wrap(client, MODEL)(FORECAST, Weather, **OPTIONS)))
    return seen


@check
def choices_and_patterns():
    # OpenAI's API has no such constraints, so outlines offers them with vLLM's parameters alone.
    model = outlines.from_vllm(client, MODEL)
    city = model("Which city is in Italy?", Literal["Paris", "Rome"], **OPTIONS)
    assert city in ("Paris", "Rome"), city
    year = model("When did the Second World War end?", outlines.types.Regex("[12][0-9]{3}"), **OPTIONS)
    assert year.isdigit() and len(year) == 4, year
    return [city, year]


main()
