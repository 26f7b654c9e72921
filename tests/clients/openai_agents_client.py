"""Agents of the OpenAI Agents SDK, by the Responses API (its default) and by chat completions."""

import asyncio
from typing import Annotated, Literal

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, ToolCallItem, ToolCallOutputItem, function_tool
from common import MODEL, Weather, check, is_answered, is_weather, main
from openai import AsyncOpenAI
from pydantic import Field

QUESTION = "What is the capital of France?"
FORECAST = "How will the weather in Rome be on the next three days?"
asked = []


@function_tool
def weather(city: Literal["Paris", "Rome"], days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """Tells the weather in a city."""
    asked.append((city, days))
    return "Sunny."


def agent(model, **options):
    # No limit of tokens: an answer that is cut off counts as a failure here.
    settings = {"temperature": 0, **options.pop("settings", {})}
    return Agent(name="Assistant", instructions="You are a helpful assistant.", model=model, model_settings=ModelSettings(**settings), **options)


def with_both_apis(function):
    """A check of a coroutine that is given a model, in one event loop, to which the connections belong."""

    async def both():
        async with AsyncOpenAI(max_retries=0) as client:
            return [await function(model(MODEL, client)) for model in (OpenAIResponsesModel, OpenAIChatCompletionsModel)]

    def run():
        return asyncio.run(both())

    run.__name__ = function.__name__
    return check(run)


@check
def quickstart():
    # The name of a model alone: base URL and key are taken from the environment.
    answer = Runner.run_sync(agent(MODEL), QUESTION)
    return is_answered(answer.final_output)


@with_both_apis
async def text(model):
    result = Runner.run_streamed(agent(model), QUESTION)
    kinds = [event.data.type async for event in result.stream_events() if event.type == "raw_response_event"]
    assert kinds.count("response.output_text.delta") > 3, kinds
    whole = await Runner.run(agent(model), QUESTION)
    assert result.final_output == whole.final_output
    return is_answered(whole.final_output)


@with_both_apis
async def tools(model):
    calling = agent(model, tools=[weather], settings={"tool_choice": "required", "parallel_tool_calls": False})
    asked.clear()
    whole = await Runner.run(calling, FORECAST)
    streamed = Runner.run_streamed(calling, FORECAST)
    async for _ in streamed.stream_events():
        pass
    for result in (whole, streamed):
        kinds = [type(item) for item in result.new_items]
        assert kinds.count(ToolCallItem) == kinds.count(ToolCallOutputItem) >= 1, kinds
    assert len(asked) >= 2
    return whole.final_output


@with_both_apis
async def structured_output(model):
    writing = agent(model, output_type=Weather)
    answer = (await Runner.run(writing, FORECAST)).final_output
    assert isinstance(answer, Weather), answer
    return is_weather(answer.model_dump())


main()
