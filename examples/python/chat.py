"""Streams one chat answer with OpenAI's Python client: chat.py [PROMPT]"""

import os
import sys

import httpx
from openai import OpenAI, OpenAIError


def main() -> int:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "What is machine learning? Answer in one sentence."
    try:
        client = OpenAI(
            base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:3000/v1"),
            api_key=os.environ.get("OPENAI_API_KEY", "unused"),
        )
        stream = client.chat.completions.create(
            model=os.environ.get("MODEL", "smollm2-135m-instruct"),
            messages=[{"role": "user", "content": prompt}],
            max_tokens=200,
            stream=True,
        )
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
    # A connection that breaks in the middle of a stream is httpx's error.
    except (OpenAIError, httpx.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print()
    return 0


sys.exit(main())
