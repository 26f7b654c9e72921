"""Errors, retries and timeouts of the openai package."""

import time

import openai
from common import ABSENT, MESSAGES, MODEL, check, main, raises

client = openai.OpenAI(max_retries=0)
OPTIONS = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 4}


@check
def errors():
    def refused(exception, **options):
        error = raises(exception, lambda: client.chat.completions.create(**{**OPTIONS, **options}))
        assert error.request_id == error.response.headers["x-request-id"]
        assert error.body["message"], error.body
        return [error.status_code, error.code, error.param]

    assert refused(openai.BadRequestError, temperature=3) == [400, "invalid_value", "temperature"]
    assert refused(openai.BadRequestError, top_logprobs=2) == [400, "invalid_value", "top_logprobs"]
    unknown = refused(openai.BadRequestError, extra_body={"no_such_parameter": 1})
    assert unknown == [400, "unknown_parameter", "no_such_parameter"]
    unsupported = refused(openai.BadRequestError, modalities=["text", "audio"])
    assert unsupported == [400, "unsupported_parameter", "modalities[1]"]
    assert refused(openai.NotFoundError, model="no-such-model") == [404, "model_not_found", "model"]
    assert refused(openai.InternalServerError, model=ABSENT) == [503, "no_worker", "model"]
    assert refused(openai.BadRequestError, temperature=3, stream=True) == [400, "invalid_value", "temperature"]


@check
def keys():
    wrong = openai.OpenAI(api_key="wrong", max_retries=0)
    error = raises(openai.AuthenticationError, lambda: wrong.models.list())
    assert [error.status_code, error.code, error.param] == [401, "invalid_api_key", None]


def attempts_of(max_retries, **options):
    """How often a request is sent before the client gives up, what it raises, and how long that takes."""
    attempts = []
    http = openai.DefaultHttpxClient(event_hooks={"response": [lambda response: attempts.append(response.status_code)]})
    patient = openai.OpenAI(max_retries=max_retries, http_client=http)
    begun = time.monotonic()
    error = raises(openai.InternalServerError, lambda: patient.chat.completions.create(**{**OPTIONS, **options}))
    return attempts, error, time.monotonic() - begun


@check
def retries():
    attempts, error, seconds = attempts_of(1, model=ABSENT)
    assert attempts == [503, 503], attempts
    wait = float(error.response.headers["retry-after"])
    assert seconds >= wait, f"retried after {seconds} s instead of {wait} s"
    # The official client waits for as long as it is told, up to a minute.
    assert 0 < wait <= 60
    return wait


@check
def no_retries_of_what_stays_wrong():
    attempts = []
    http = openai.DefaultHttpxClient(event_hooks={"response": [lambda response: attempts.append(response.status_code)]})
    patient = openai.OpenAI(http_client=http)
    raises(openai.BadRequestError, lambda: patient.chat.completions.create(**{**OPTIONS, "temperature": 3}))
    assert attempts == [400], attempts


@check
def timeouts():
    hasty = client.with_options(timeout=0.001)
    raises(openai.APITimeoutError, lambda: hasty.chat.completions.create(**OPTIONS))
    # The server goes on for others.
    assert client.chat.completions.create(**OPTIONS).choices


@check
def raw_response():
    raw = client.chat.completions.with_raw_response.create(**OPTIONS, extra_headers={"x-request-id": "mine-1"})
    assert raw.status_code == 200 and raw.headers["x-request-id"] == "mine-1"
    assert raw.retries_taken == 0
    assert raw.parse().choices[0].message.role == "assistant"
    with client.chat.completions.with_streaming_response.create(**OPTIONS, stream=True) as streamed:
        assert streamed.headers["content-type"] == "text/event-stream"
        lines = [line for line in streamed.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return {name: value for name, value in raw.headers.items() if "ratelimit" in name.lower()}


main()
