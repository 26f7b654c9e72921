"""Two compliance suites of llm-comply: Open Responses and OpenAI chat completions, each with its schema.

Of the 17 points of the Open Responses project's own suite, llm-comply has all but seven about WebSockets.
"""

import dataclasses
import pathlib

import llm_comply
from common import API_KEY, BASE_URL, MODEL, check, main
from llm_comply.config import ComplianceConfig
from llm_comply.result import TestStatus
from llm_comply.runner import TestRunner
from llm_comply.schema import SpecLoader
from llm_comply.tests import get_tests

CONFIG = ComplianceConfig(base_url=BASE_URL, api_key=API_KEY, model=MODEL, timeout=300)
# The models that there are read no images, nor do they think.
UNSUPPORTED = {
    "image-input": TestStatus.FAILED,
    "reasoning-summary": TestStatus.SKIPPED,
    "chat-image-input": TestStatus.FAILED,
    "chat-reasoning-summary": TestStatus.SKIPPED,
}


def decided(test):
    """The same test without chance: at temperature 1 so small a model sometimes writes until the context is full."""
    return dataclasses.replace(test, build_request=lambda config: {**test.build_request(config), "temperature": 0})


def passed(suite, specification):
    """How many tests of a suite passed, which are all that can."""
    spec = SpecLoader(str(pathlib.Path(llm_comply.__file__).parent / "specs" / specification))
    tests = [decided(test) for test in get_tests(suite)]
    results = TestRunner(config=CONFIG, test_cases=tests, spec_loader=spec).run_all().results
    assert len(results) == len(tests)
    wrong = {result.id: result.errors for result in results if result.status != UNSUPPORTED.get(result.id, TestStatus.PASSED)}
    assert not wrong, "\n".join(f"{name}: {'; '.join(errors)}" for name, errors in wrong.items())
    return f"{sum(result.status == TestStatus.PASSED for result in results)} of {len(tests)}"


@check
def open_responses():
    return passed("open-responses", "openresponses.json")


@check
def chat_completions():
    return passed("openai-chat", "openai_chat.json")


main()
