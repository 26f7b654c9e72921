"""Haystack: a pipeline, calls, structured output and an agent, by its generators for OpenAI."""

from typing import Annotated

from common import MESSAGES, MODEL, Weather, check, is_answered, is_weather, main
from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import tool

QUESTION = [ChatMessage.from_system(MESSAGES[0]["content"]), ChatMessage.from_user(MESSAGES[1]["content"])]
FORECAST = ChatMessage.from_user("How will the weather in Rome be on the next three days?")


def generator(kind=OpenAIChatGenerator, streaming_callback=None, **options):
    limit = "max_tokens" if kind is OpenAIChatGenerator else "max_output_tokens"
    # The base URL and the key are taken from the environment.
    return kind(model=MODEL, streaming_callback=streaming_callback, generation_kwargs={"temperature": 0, limit: 120, **options}, max_retries=0)


@tool
def forecast(city: Annotated[str, "The city's name"]) -> str:
    """Tells the weather in a city."""
    return f"Sunny in {city}."


@check
def text():
    answers = []
    for kind in (OpenAIChatGenerator, OpenAIResponsesChatGenerator):
        whole = generator(kind).run(QUESTION)["replies"][0].text
        pieces = []
        streamed = generator(kind, lambda chunk: pieces.append(chunk.content)).run(QUESTION)["replies"][0].text
        assert streamed == "".join(pieces) == whole, (kind, pieces)
        answers.append(is_answered(whole))
    return answers


@check
def pipeline():
    steps = Pipeline()
    steps.add_component("prompt", ChatPromptBuilder(template=[QUESTION[0], ChatMessage.from_user("What is the capital of {{country}}?")]))
    steps.add_component("llm", generator())
    steps.connect("prompt.prompt", "llm.messages")
    return is_answered(steps.run({"prompt": {"country": "France"}})["llm"]["replies"][0].text)


@check
def tools():
    for kind in (OpenAIChatGenerator, OpenAIResponsesChatGenerator):
        asked = generator(kind, tool_choice="required", parallel_tool_calls=False).run([FORECAST], tools=[forecast])["replies"][0]
        (call,) = asked.tool_calls
        assert call.tool_name == "forecast" and call.arguments["city"], call
        result = ChatMessage.from_tool("Sunny.", origin=call)
        assert generator(kind, tool_choice="none").run([FORECAST, asked, result], tools=[forecast])["replies"][0].text


@check
def structured_output():
    answer = generator(response_format=Weather).run([FORECAST])["replies"][0].text
    return is_weather(answer)


@check
def agent():
    # Whether it calls the function is up to the model.
    helper = Agent(chat_generator=generator(), tools=[forecast], max_agent_steps=3)
    return helper.run([FORECAST])["messages"][-1].text


main()
