"""LlamaIndex: completions, chat, calls, structured output and an agent, by its class for servers like OpenAI's."""

import asyncio

from common import API_KEY, BASE_URL, MESSAGES, MODEL, Weather, check, is_answered, is_weather, main
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

QUESTION = [ChatMessage(**message) for message in MESSAGES]
FORECAST = "How will the weather in Rome be on the next three days?"


def model(**options):
    kind = {"is_chat_model": True, "is_function_calling_model": True, "should_use_structured_outputs": True, "context_window": 8192}
    return OpenAILike(model=MODEL, api_base=BASE_URL, api_key=API_KEY, **{**kind, "temperature": 0, "max_tokens": 120, "max_retries": 0, **options})


def forecast(city: str) -> str:
    """Tells the weather in a city."""
    return f"Sunny in {city}."


TOOL = FunctionTool.from_defaults(forecast)


@check
def text():
    whole = model().chat(QUESTION).message.content
    assert "".join(chunk.delta for chunk in model().stream_chat(QUESTION)) == whole

    async def ask():
        return (await model().achat(QUESTION)).message.content

    assert asyncio.run(ask()) == whole
    return is_answered(whole)


@check
def completions():
    chat = model(max_tokens=8)
    legacy = model(max_tokens=8, is_chat_model=False)
    for llm in (chat, legacy):
        whole = llm.complete("The capital of France is").text
        assert "".join(chunk.delta for chunk in llm.stream_complete("The capital of France is")) == whole != ""


@check
def tools():
    llm = model()
    answer = llm.chat_with_tools([TOOL], FORECAST, tool_required=True, allow_parallel_tool_calls=False)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "forecast" and call.tool_kwargs["city"]
    *_, last = llm.stream_chat_with_tools([TOOL], FORECAST, tool_required=True)
    assert llm.get_tool_calls_from_response(last)[0].tool_name == "forecast"
    result = ChatMessage(role="tool", content="Sunny.", additional_kwargs={"tool_call_id": call.tool_id})
    assert llm.chat([ChatMessage(role="user", content=FORECAST), answer.message, result]).message.content
    return call.tool_kwargs


@check
def structured_output():
    seen = []
    for enforced in (True, False):
        llm = model(should_use_structured_outputs=enforced).as_structured_llm(Weather)
        answer = llm.complete(FORECAST).raw
        assert isinstance(answer, Weather), answer
        seen.append(is_weather(answer.model_dump()))
    return seen


@check
def agent():
    async def ask():
        return await FunctionAgent(tools=[TOOL], llm=model(), system_prompt="You are a helpful assistant.").run(FORECAST)

    # Whether it calls the function is up to the model.
    return str(asyncio.run(ask()))


main()
