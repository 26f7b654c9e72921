"""lm-eval on a task of its own making: generated answers by chat, log-likelihoods of choices by completions."""

import json
import pathlib

from common import BASE_URL, MODEL, check, main
from hub_tokenizer import save
from programs import run, the_json

CAPITALS = [("France", "Paris", "Madrid"), ("Spain", "Madrid", "Paris"), ("Germany", "Berlin", "Rome"), ("Italy", "Rome", "Berlin")]
TOKENIZER = save()

with open("capitals.jsonl", "w") as file:
    for country, capital, other in CAPITALS:
        print(json.dumps({"country": country, "capital": capital, "other": other}), file=file)


def evaluate(model, path, task, metric, *options, **arguments):
    """The task's result for the metric."""
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "capitals.jsonl"}}, "test_split": "test"}
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]
    # JSON is YAML.
    pathlib.Path(f"{task['task']}.yaml").write_text(json.dumps({**common, **task, "metric_list": metrics, "metadata": {"version": 1}}))
    settings = {"model": MODEL, "base_url": f"{BASE_URL}{path}", "num_concurrent": 2, "max_retries": 1, **arguments}
    told = ",".join(f"{name}={value}" for name, value in settings.items())
    output = f"{task['task']}-results"
    run("lm_eval", "--model", model, "--model_args", told, "--tasks", task["task"], "--include_path", ".", "--output_path", output, *options)
    results = the_json(output, "results_*.json")
    assert results["n-samples"][task["task"]]["effective"] == len(CAPITALS), results["n-samples"]
    return next(value for name, value in results["results"][task["task"]].items() if name.startswith(f"{metric},"))


@check
def generate():
    task = {
        "task": "capitals_generate",
        "output_type": "generate_until",
        "doc_to_text": "What is the capital of {{country}}?",
        "doc_to_target": "The capital of {{country}} is {{capital}}.",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
    }
    share = evaluate("local-chat-completions", "/chat/completions", task, "exact_match", "--apply_chat_template")
    assert 0 <= share <= 1
    return share


@check
def log_likelihood():
    task = {
        "task": "capitals_choose",
        "output_type": "multiple_choice",
        "doc_to_text": "The capital of {{country}} is",
        "doc_to_choice": "{{[capital, other]}}",
        "doc_to_target": 0,
    }
    share = evaluate("local-completions", "/completions", task, "acc", tokenizer=TOKENIZER, tokenizer_backend="huggingface")
    # Chance is one half, and even the tiny model knows better.
    assert share >= 0.75, share
    return share


main()
