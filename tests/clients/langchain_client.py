"""Chains and structured output by langchain-openai."""

import asyncio
import json

from common import MESSAGES, MODEL, Weather, check, is_answered, is_weather, main
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

OPTIONS = {"model": MODEL, "temperature": 0, "max_retries": 0}
chat = ChatOpenAI(**OPTIONS, max_completion_tokens=24)
QUESTION = [SystemMessage(MESSAGES[0]["content"]), HumanMessage(MESSAGES[1]["content"])]


@tool(args_schema=Weather)
def weather(city: str, days: int) -> str:
    """Tells the weather in a city."""
    return f"Sunny in {city} on {days} days."


@check
def text():
    answer = chat.invoke(QUESTION)
    assert isinstance(answer, AIMessage)
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    return is_answered(answer.content)


@check
def stream():
    whole = chat.invoke(QUESTION)
    gathered = None
    for chunk in ChatOpenAI(**OPTIONS, max_completion_tokens=24, stream_usage=True).stream(QUESTION):
        gathered = chunk if gathered is None else gathered + chunk
    assert gathered.content == whole.content
    assert gathered.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]


@check
def batches_and_async():
    prompt = ChatPromptTemplate.from_messages([("system", "You are a helpful assistant."), ("user", "{question}")])
    chain = prompt | chat
    questions = [{"question": MESSAGES[1]["content"]}, {"question": "What is machine learning?"}]
    answers = [answer.content for answer in chain.batch(questions)]

    async def ask():
        pieces = [chunk.content async for chunk in chain.astream(questions[1])]
        return (await chain.ainvoke(questions[0])).content, "".join(pieces)

    assert list(asyncio.run(ask())) == answers


@check
def tools():
    calling = ChatOpenAI(**OPTIONS, max_completion_tokens=120).bind_tools([weather], tool_choice="required", parallel_tool_calls=False)
    question = HumanMessage("How will the weather in Rome be?")
    answer = calling.invoke([question])
    (call,) = answer.tool_calls
    assert call["name"] == "weather"
    is_weather(call["args"])
    gathered = None
    for chunk in calling.stream([question]):
        gathered = chunk if gathered is None else gathered + chunk
    assert [(c["name"], c["args"]) for c in gathered.tool_calls] == [("weather", call["args"])]
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage) and result.tool_call_id == call["id"]
    final = chat.bind_tools([weather], tool_choice="none").invoke([question, answer, result])
    assert final.content and not final.tool_calls


@check
def structured_output():
    longer = ChatOpenAI(**OPTIONS, max_completion_tokens=120)
    seen = {}
    for method in ("json_schema", "function_calling"):
        answer = longer.with_structured_output(Weather, method=method).invoke("How will the weather in Rome be?")
        assert isinstance(answer, Weather), (method, answer)
        seen[method] = answer.model_dump()
    raw = longer.bind(response_format={"type": "json_object"}).invoke("Describe Rome as JSON.")
    if raw.response_metadata["finish_reason"] == "stop":
        assert isinstance(json.loads(raw.content), dict)
    return seen


@check
def log_probabilities():
    answer = ChatOpenAI(**OPTIONS, max_completion_tokens=5, logprobs=True, top_logprobs=2).invoke(QUESTION)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == answer.content
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)


@check
def legacy_completions():
    legacy = OpenAI(model=MODEL, temperature=0, max_tokens=8, max_retries=0)
    assert "".join(legacy.stream("The capital of France is")) == legacy.invoke("The capital of France is")


@check
def responses():
    answer = ChatOpenAI(**OPTIONS, max_completion_tokens=24, use_responses_api=True, store=False).invoke(QUESTION)
    assert answer.text == chat.invoke(QUESTION).content


main()
