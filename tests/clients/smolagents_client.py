"""smolagents: its model for servers like OpenAI's, an agent that calls tools and one that writes code."""

from common import API_KEY, BASE_URL, MESSAGES, MODEL, check, is_answered, main
from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool
from smolagents.utils import AgentError

model = OpenAIModel(model_id=MODEL, api_base=BASE_URL, api_key=API_KEY, temperature=0, max_tokens=120)
FORECAST = "How will the weather in Rome be on the next three days?"


@tool
def forecast(city: str) -> str:
    """Tells the weather in a city.

    Args:
        city: Its name.
    """
    return f"Sunny in {city}."


@check
def text():
    whole = model(MESSAGES)
    assert whole.token_usage.input_tokens > 0 and whole.token_usage.output_tokens > 0
    assert "".join(delta.content or "" for delta in model.generate_stream(MESSAGES)) == whole.content
    return is_answered(whole.content)


@check
def tools():
    answer = model([{"role": "user", "content": FORECAST}], tools_to_call_from=[forecast])
    assert answer.tool_calls[0].function.name == "forecast", answer


def steps(agent):
    """Runs it; how many steps it took. The tiny model's mistakes are its own, those of the API are not."""
    agent.run(FORECAST, max_steps=2)
    failures = [step.error for step in agent.memory.steps if getattr(step, "error", None)]
    assert not any("Error code" in str(failure) for failure in failures), failures
    assert all(isinstance(failure, AgentError) for failure in failures), failures
    return len(agent.memory.steps)


@check
def tool_calling_agent():
    return [steps(ToolCallingAgent(tools=[forecast], model=model, stream_outputs=streamed, verbosity_level=0)) for streamed in (False, True)]


@check
def code_agent():
    return [steps(CodeAgent(tools=[forecast], model=model, verbosity_level=0, use_structured_outputs_internally=enforced)) for enforced in (False, True)]


main()
