"""The `llm` command line, with the server as one of its extra OpenAI models."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from common import API_KEY, BASE_URL, MESSAGES, MODEL, check, is_answered, is_weather, main

folder = tempfile.TemporaryDirectory()
models = [
    {"model_id": "emberline", "model_name": MODEL, "api_base": BASE_URL, "api_key_name": "emberline", "supports_schema": True, "supports_tools": True},
    {"model_id": "emberline-raw", "model_name": MODEL, "api_base": BASE_URL, "api_key_name": "emberline", "completion": True},
]
# JSON is YAML.
pathlib.Path(folder.name, "extra-openai-models.yaml").write_text(json.dumps(models))
pathlib.Path(folder.name, "keys.json").write_text(json.dumps({"emberline": API_KEY}))


def llm(*arguments):
    """Runs it; what it prints."""
    command = pathlib.Path(sys.executable).with_name("llm")
    environment = {**os.environ, "LLM_USER_PATH": folder.name}
    run = subprocess.run([command, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


ASK = ["-m", "emberline", "-s", MESSAGES[0]["content"], "-o", "temperature", "0", "-o", "max_tokens", "24"]


@check
def text():
    streamed = llm(*ASK, MESSAGES[1]["content"])
    assert streamed == llm(*ASK, "--no-stream", MESSAGES[1]["content"])
    return is_answered(streamed)


@check
def conversation():
    assert llm(*ASK, MESSAGES[1]["content"]) and llm("-c", "And of Italy?", "-o", "max_tokens", "8")
    counted = json.loads(llm("logs", "--json", "-n", "2"))
    assert counted[0]["input_tokens"] != counted[1]["input_tokens"], "the question before is part of the prompt"


@check
def schema():
    weather = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    ask = [*ASK[:-1], "120", "--schema", json.dumps(weather), "How will the weather in Rome be?"]
    return is_weather(llm(*ask))


@check
def tools():
    # Whether it calls one is up to the model.
    llm(*ASK, "-T", "llm_time", "What time is it?")
    logged = json.loads(llm("logs", "--json", "-n", "1"))
    assert logged[0]["tools"][0]["name"] == "llm_time", logged


@check
def raw_completion():
    ask = ["-m", "emberline-raw", "-o", "temperature", "0", "-o", "max_tokens", "8", "The capital of France is"]
    assert llm(*ask) == llm(*ask, "--no-stream") != ""


main()
