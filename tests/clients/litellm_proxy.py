"""litellm as a proxy in front of the server: the openai package talks to it as to any other."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import openai
from common import BASE_URL, MESSAGES, MODEL, WEATHER_QUESTION, WEATHER_TOOL, check, is_answered, is_weather, main

KEY = "sk-proxy"
CONFIGURATION = f"""
model_list:
  - model_name: small
    litellm_params:
      model: openai/{MODEL}
      api_base: {BASE_URL}
      api_key: os.environ/OPENAI_API_KEY
general_settings:
  master_key: {KEY}
"""
OPTIONS = {"model": "small", "messages": MESSAGES, "temperature": 0, "max_tokens": 24}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def proxy():
    """Starts it and waits until it is ready; its address."""
    port = free_port()
    pathlib.Path("config.yaml").write_text(CONFIGURATION)
    command = pathlib.Path(sys.executable).with_name("litellm")
    with open("proxy.log", "w") as log:
        process = subprocess.Popen(
            [command, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"],
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, pathlib.Path("proxy.log").read_text()[-3000:]
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def run(url):
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)

    @check
    def text():
        answer = client.chat.completions.create(**OPTIONS)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        return is_answered(answer.choices[0].message.content)

    @check
    def stream():
        whole = client.chat.completions.create(**OPTIONS).choices[0].message.content
        chunks = list(client.chat.completions.create(**OPTIONS, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
        assert chunks[-1].usage.completion_tokens > 0

    @check
    def tools():
        asked = {**OPTIONS, "messages": WEATHER_QUESTION, "tools": [WEATHER_TOOL], "tool_choice": "required", "max_tokens": 120}
        choice = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
        (call,) = choice.message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
        messages = [*WEATHER_QUESTION, choice.message, result]
        assert client.chat.completions.create(**{**asked, "messages": messages, "tool_choice": "none", "max_tokens": 8}).choices
        return is_weather(call.function.arguments)

    @check
    def responses():
        answer = client.responses.create(model="small", input=MESSAGES, temperature=0, max_output_tokens=24)
        with client.responses.stream(model="small", input=MESSAGES, temperature=0, max_output_tokens=24) as events:
            for _ in events:
                pass
            assert events.get_final_response().output_text == answer.output_text
        return is_answered(answer.output_text)

    @check
    def errors():
        try:
            client.chat.completions.create(**{**OPTIONS, "temperature": 3})
        except openai.BadRequestError as error:
            return error.status_code
        raise AssertionError("a temperature of 3 was accepted")

    main()


with proxy() as url:
    run(url)
