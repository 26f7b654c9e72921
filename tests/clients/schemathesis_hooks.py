"""Generated requests reach the model, and take it little time.

A good value is only replaced by another good one, so that a bad request stays bad.
"""

import schemathesis

MODEL = "vllm-primary"
# What each endpoint calls the length of an answer.
LENGTH = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
TIMEOUT = "x-request-timeout"


def is_length(value):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and value == int(value) and (value >= 1 or value == -1)


def is_timeout(value):
    try:
        return value is not None and float(value) > 0
    except ValueError:
        return False


@schemathesis.hook
def before_call(context, case, kwargs):
    # Spin answers 500 to a header that is not UTF-8 before the function is asked, and so does our
    # host. A tab is as bad to the function.
    case.headers = {
        name: value if value.isascii() else "a\tb" for name, value in (case.headers or {}).items()
    }
    # Most of the numbers that it draws are over before a model could answer.
    if is_timeout(case.headers.get(TIMEOUT)):
        case.headers[TIMEOUT] = "60"
    if not isinstance(case.body, dict):
        return
    # A copy: schemathesis builds other cases from this one.
    body = dict(case.body)
    if isinstance(body.get("model"), str) and 1 <= len(body["model"]) <= 256:
        body["model"] = MODEL
    # Null is as good as nothing, which asks for all that the context leaves.
    if case.path in LENGTH and body.get(LENGTH[case.path]) is None:
        body[LENGTH[case.path]] = 2
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if is_length(body.get(name)):
            body[name] = 2
    case.body = body
