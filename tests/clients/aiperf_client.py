"""aiperf: chat, text completions and responses, streamed and not, with the model's own tokenizer."""

from common import API_KEY, BASE_URL, MODEL, check, main
from hub_tokenizer import save_in_cache
from programs import run, the_json

# Offline it takes no tokenizer from a path.
HUB_CACHE, TOKENIZER = save_in_cache()
REQUESTS = 4


def profile(kind, *options):
    folder = "-".join(["artifacts", kind, *options])
    run(
        "aiperf",
        "profile",
        *("--model", MODEL, "--url", BASE_URL.removesuffix("/v1"), "--api-key", API_KEY, "--tokenizer", TOKENIZER),
        *("--endpoint-type", kind, "--request-count", REQUESTS, "--concurrency", 2),
        *("--synthetic-input-tokens-mean", 40, "--output-tokens-mean", 12, "--random-seed", 1),
        *("--no-server-metrics", "--no-gpu-telemetry", "--ui", "none", "--artifact-dir", folder),
        *options,
        HF_HUB_CACHE=HUB_CACHE,
    )
    results = the_json(folder, "profile_export_aiperf.json")
    assert not results.get("error_summary"), results["error_summary"]
    assert results["request_count"]["avg"] == REQUESTS, results["request_count"]


@check
def chat():
    profile("chat")
    profile("chat", "--streaming")
    profile("chat", "--streaming", "--use-server-token-count", "--per-chunk-usage")


@check
def completions():
    profile("completions")
    profile("completions", "--streaming")


@check
def responses():
    profile("responses")
    profile("responses", "--streaming")


main()
