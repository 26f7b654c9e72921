"""guidellm: a benchmark of each of the three APIs, streamed as it does by default."""

import json
import os
import pathlib

from common import API_KEY, BASE_URL, MODEL, check, main
from programs import run, the_json

REQUESTS = 4
# guidellm iterates over its data by a class of PyTorch and uses nothing else of it for text.
STAND_INS = pathlib.Path(__file__).with_name("stand_ins")

with open("prompts.jsonl", "w") as file:
    for number in range(REQUESTS):
        print(json.dumps({"prompt": f"What is {number} plus {number}?", "output_tokens_count": 12}), file=file)


def benchmark(api):
    """All requests succeed; how many tokens the answers had, as the server counted them."""
    backend = {"kind": "openai_http", "target": BASE_URL.removesuffix("/v1"), "model": MODEL, "api_key": API_KEY, "request_format": api, "max_tokens": 12}
    run(
        "guidellm",
        *("run", "--disable-console"),
        *("--backend", json.dumps(backend)),
        *("--data", "kind=json_file,path=prompts.jsonl"),
        *("--profile", "kind=synchronous"),
        *("--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--output", "kind=json,path=report.json"),
        PYTHONPATH=str(STAND_INS),
        USE_TORCH="0",
    )
    (result,) = the_json(".", "report.json")["benchmarks"]
    requests = result["requests"]
    assert not requests["errored"] and not requests["incomplete"], requests["errored"]
    assert len(requests["successful"]) == REQUESTS
    os.remove("report.json")


@check
def chat():
    benchmark("/v1/chat/completions")


@check
def text():
    benchmark("/v1/completions")


@check
def responses():
    benchmark("/v1/responses")


main()
