"""Agents of pydantic-ai, by chat completions and by the Responses API."""

from common import MODEL, Weather, check, is_answered, is_weather, main
from pydantic_ai import Agent, ModelSettings, NativeOutput, ToolOutput
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.usage import UsageLimits

MODELS = [OpenAIChatModel(MODEL), OpenAIResponsesModel(MODEL)]
SETTINGS = ModelSettings(temperature=0, max_tokens=60)
LONGER = ModelSettings(temperature=0, max_tokens=120)
QUESTION = "What is the capital of France?"
FORECAST = "How will the weather in Rome be on the next three days?"


def agent(model, **options):
    return Agent(model, instructions="You are a helpful assistant.", model_settings=SETTINGS, **options)


@check
def quickstart():
    seen = {}
    for kind in ("openai-chat", "openai-responses"):
        answer = agent(f"{kind}:{MODEL}").run_sync(QUESTION)
        seen[kind] = is_answered(answer.output)
    return seen


@check
def text():
    results = [agent(model).run_sync(QUESTION) for model in MODELS]
    outputs = [result.output for result in results]
    assert outputs[0] == outputs[1], outputs
    for result in results:
        usage = result.usage
        assert usage.input_tokens > 0 and usage.output_tokens > 0, usage
    return is_answered(outputs[0])


@check
def stream():
    for model in MODELS:
        whole = agent(model).run_sync(QUESTION).output
        streamed = agent(model).run_stream_sync(QUESTION)
        pieces = list(streamed.stream_text(delta=True, debounce_by=None))
        assert len(pieces) > 3 and "".join(pieces) == whole, pieces


@check
def history():
    for model in MODELS:
        first = agent(model).run_sync(QUESTION)
        second = agent(model).run_sync("And of Italy?", message_history=first.new_messages())
        assert second.output.strip() and len(second.all_messages()) == 4


@check
def tools():
    for model in MODELS:
        asked = []
        # Text is no answer here, so that each step calls a function; which one is up to the model.
        calling = agent(model, output_type=ToolOutput(Weather, name="answer"))

        @calling.tool_plain
        def forecast(city: str) -> str:
            """Tells the weather in a city."""
            asked.append(city)
            return "Sunny."

        steps = UsageLimits(request_limit=3)
        try:
            answer = calling.run_sync(FORECAST, model_settings=LONGER, usage_limits=steps).output
            assert isinstance(answer, Weather), answer
        except UsageLimitExceeded:
            # It asks for the weather again and again, and is told each time.
            assert len(asked) >= 2


@check
def structured_output():
    for model in MODELS:
        for output in (ToolOutput(Weather), NativeOutput(Weather)):
            result = agent(model, output_type=output).run_sync(FORECAST, model_settings=LONGER)
            assert isinstance(result.output, Weather), (model, output, result.output)
            is_weather(result.output.model_dump())


main()
