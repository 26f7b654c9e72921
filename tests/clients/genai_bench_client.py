"""genai-bench: streamed chat, as it asks OpenAI and as it asks vLLM."""

from common import API_KEY, BASE_URL, MODEL, check, main
from hub_tokenizer import save
from programs import run, the_json

TOKENIZER = save()
REQUESTS = 4


def benchmark(backend):
    run(
        "genai-bench",
        "benchmark",
        *("--api-backend", backend, "--api-base", BASE_URL.removesuffix("/v1"), "--api-key", API_KEY, "--api-model-name", MODEL),
        *("--model-tokenizer", TOKENIZER, "--task", "text-to-text", "--traffic-scenario", "D(40,12)", "--num-concurrency", 2),
        *("--max-requests-per-run", REQUESTS, "--max-time-per-run", 5),
        *("--experiment-base-dir", ".", "--experiment-folder-name", backend),
        ENABLE_UI="false",
    )
    metrics = the_json(backend, "D40_12_*.json")["aggregated_metrics"]
    assert metrics["num_error_requests"] == 0, metrics["error_codes_frequency"]
    assert metrics["num_completed_requests"] >= REQUESTS
    return metrics["num_completed_requests"]


@check
def openai():
    return benchmark("openai")


@check
def vllm():
    return benchmark("vllm")


main()
