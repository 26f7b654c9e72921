"""aider is asked to change a file; whether it changes is up to the model, that it is answered is not."""

import json
import pathlib

from common import BASE_URL, MODEL, check, main
from programs import run

# The tiny model may go on until the context is full.
SETTINGS = [{"name": f"openai/{MODEL}", "edit_format": "whole", "extra_params": {"max_tokens": 160}}]
# JSON is YAML.
pathlib.Path("settings.yml").write_text(json.dumps(SETTINGS))
pathlib.Path("hello.py").write_text('print("Hello")\n')


def ask(*options):
    said = run(
        "aider",
        *("--model", f"openai/{MODEL}", "--model-settings-file", "settings.yml", "--message", "Let hello.py print Goodbye instead."),
        *("--yes-always", "--no-git", "--no-check-update", "--analytics-disable", "--no-show-model-warnings", "--no-pretty"),
        *(*options, "hello.py"),
        OPENAI_API_BASE=BASE_URL,
    )
    # What it says of a failure, after which it ends with 0 all the same.
    assert "Tokens:" in said and "litellm." not in said, said[-3000:]


@check
def streamed():
    ask("--stream")


@check
def whole():
    ask("--no-stream")


main()
