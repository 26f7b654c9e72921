"""guidance: generation that captures, JSON and tools by its model for OpenAI, grammars by that for vLLM."""

import guidance
from common import API_KEY, BASE_URL, MESSAGES, MODEL, Weather, check, is_weather, main
from guidance.models.experimental import VLLMModel



def asked(kind, question):
    """A model that was asked a question."""
    model = kind(MODEL, base_url=BASE_URL, api_key=API_KEY, echo=False)
    with guidance.system():
        model += MESSAGES[0]["content"]
    with guidance.user():
        model += question
    return model


@check
def text():
    model = asked(guidance.models.OpenAI, MESSAGES[1]["content"])
    with guidance.assistant():
        model += guidance.gen("answer", max_tokens=24, temperature=0)
    # It takes a temperature of 0 for none given, so the answer may be any.
    assert model["answer"].strip()
    return model["answer"]


@check
def structured_output():
    model = asked(guidance.models.OpenAI, "How will the weather in Rome be on the next three days?")
    with guidance.assistant():
        model += guidance.json("weather", schema=Weather)
    return is_weather(model["weather"])


@check
def grammars():
    model = asked(VLLMModel, "Is Rome in Italy?")
    with guidance.assistant():
        model += guidance.select(["yes", "no"], name="choice")
    assert model["choice"] in ("yes", "no"), model["choice"]
    model = asked(VLLMModel, "When did the Second World War end?")
    with guidance.assistant():
        model += guidance.gen("year", regex="[12][0-9]{3}")
    assert model["year"].isdigit() and len(model["year"]) == 4, model["year"]
    return [model["year"]]


main()
