"""Streams one answer that goes on though a host cuts its requests: background.py [PROMPT]"""

import os
import sys
import time

import httpx
from openai import APIConnectionError, OpenAI, OpenAIError

ENDS = ("response.completed", "response.incomplete", "response.failed")


def events(client, prompt):
    """The events of one response. Where a stream ends before the response does, another one goes on."""
    stream = client.responses.create(
        model=os.environ.get("MODEL", "smollm2-135m-instruct"),
        input=prompt,
        max_output_tokens=200,
        background=True,
        stream=True,
    )
    response = last = None
    while True:
        try:
            for event in stream:
                # The function ends a stream with a timeout shortly before its host would cut it.
                if event.type == "error" and event.code == "timeout":
                    break
                if event.type == "response.created":
                    response = event.response.id
                last = event.sequence_number
                yield event
                if event.type in ENDS or event.type == "error":
                    return
        except (APIConnectionError, httpx.HTTPError):
            # The host cut it, or the network did.
            if response is None:
                raise
        time.sleep(0.1)
        stream = client.responses.retrieve(response, stream=True, starting_after=last)


def main() -> int:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "What is machine learning? Answer in one sentence."
    try:
        client = OpenAI(
            base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:3000/v1"),
            api_key=os.environ.get("OPENAI_API_KEY", "unused"),
        )
        for event in events(client, prompt):
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
            elif event.type == "error":
                raise OpenAIError(event.message)
            elif event.type == "response.failed":
                raise OpenAIError(event.response.error.message)
    except (OpenAIError, httpx.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print()
    return 0


sys.exit(main())
