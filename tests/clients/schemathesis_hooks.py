"""Generated requests reach the model, and take it little time.

A good value is only replaced by another good one, so that a bad request stays bad.
"""

import schemathesis

MODEL = "vllm-primary"
# Whichever of these an endpoint has.
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def is_length(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str) and 1 <= len(body["model"]) <= 256:
        body["model"] = MODEL
    name = {"/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens", "/v1/responses": "max_output_tokens"}
    if case.path in name:
        body.setdefault(name[case.path], 2)
    for length in LENGTHS:
        if is_length(body.get(length)):
            body[length] = 2
