//! Answers that obey, with the real model, whole and as a stream. Twenty schemas at high
//! temperature are the worker's own test.

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::cases;
use emberline_test_kit::compare::{refusal, whole_and_streamed, with};
use emberline_test_kit::stack::{MODEL, Stack};
use serde_json::{Value, json};

use super::AT_ONCE;

fn ask(more: &Value) -> Value {
    let body = json!({
        "model": MODEL, "temperature": 1.1, "seed": 3, "max_tokens": 150,
        "messages": [{"role": "user", "content": "Describe Zürich."}],
    });
    with(&body, more)
}

fn schema() -> Value {
    json!({
        "type": "object", "required": ["name", "lakes", "near"], "additionalProperties": false,
        "properties": {
            "name": {"enum": ["Zürich", "Genève"]},
            "lakes": {"type": "integer", "minimum": 0, "maximum": 9},
            "near": {"type": "array", "maxItems": 2, "items": {"enum": ["Bern", "Basel"]}},
        },
    })
}

fn json_schema(schema: &Value, strict: bool) -> Value {
    let named = json!({"name": "city", "schema": schema, "strict": strict});
    json!({"response_format": {"type": "json_schema", "json_schema": named}})
}

async fn text(stack: &Stack, body: &Value) -> Result<(String, bool)> {
    let answer = whole_and_streamed(stack, body).await?;
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().context("content")?;
    Ok((text.to_owned(), choice["finish_reason"] == "stop"))
}

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            answers_fit_their_schema,
            each_choice_obeys_beside_answers_that_are_free,
            objects_expressions_and_grammars_are_obeyed,
            formats_that_cannot_be_kept_are_refused,
        ],
    )
    .await
}

async fn answers_fit_their_schema(stack: &Stack) -> Result<()> {
    for strict in [true, false] {
        for seed in 0..3 {
            let body = with(&ask(&json_schema(&schema(), strict)), &json!({"seed": seed}));
            let (text, complete) = text(stack, &body).await?;
            ensure!(complete, "so small a schema comes to its end: {text}");
            let value: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            assert!(jsonschema::is_valid(&schema(), &value), "{text}");
        }
    }
    let (cut, complete) =
        text(stack, &with(&ask(&json_schema(&schema(), true)), &json!({"max_tokens": 3}))).await?;
    assert!(!complete && cut.starts_with('{'), "{cut}");
    Ok(())
}

async fn each_choice_obeys_beside_answers_that_are_free(stack: &Stack) -> Result<()> {
    let (bound, free) =
        (with(&ask(&json_schema(&schema(), true)), &json!({"n": 3})), ask(&json!({"max_tokens": 40})));
    let alone = stack.completion(&free).await?;
    let (answer, beside) = tokio::try_join!(stack.completion(&bound), stack.completion(&free))?;
    for choice in answer["choices"].as_array().context("choices")? {
        let text = choice["message"]["content"].as_str().context("content")?;
        assert!(jsonschema::is_valid(&schema(), &serde_json::from_str(text)?), "{text}");
    }
    assert_eq!(beside["choices"], alone["choices"]);
    Ok(())
}

async fn objects_expressions_and_grammars_are_obeyed(stack: &Stack) -> Result<()> {
    let format = |format: Value| json!({"response_format": format});
    let object =
        ask(&with(&format(json!({"type": "json_object"})), &json!({"temperature": 0, "max_tokens": 200})));
    let (said, complete) = text(stack, &object).await?;
    assert!(said.trim_start().starts_with('{'), "{said}");
    if complete {
        assert!(serde_json::from_str::<Value>(&said)?.is_object(), "{said}");
    }
    let regex = json!({"type": "regex", "regex": "[A-Z][a-z]{2,8}, (19|20)[0-9]{2}"});
    let (said, complete) = text(stack, &ask(&format(regex))).await?;
    let (city, year) = said.split_once(", ").with_context(|| said.clone())?;
    assert!(complete && (3..=9).contains(&city.len()), "{said}");
    assert!((1900..2100).contains(&year.parse::<u32>()?), "{said}");
    let grammar = json!({"type": "grammar", "grammar": "start: animal (\" and \" animal)?\nanimal: \"a cat\" | \"a dög\""});
    let (said, complete) = text(stack, &ask(&format(grammar))).await?;
    assert!(complete, "{said}");
    assert!(said.split(" and ").all(|animal| ["a cat", "a dög"].contains(&animal)), "{said}");
    Ok(())
}

async fn formats_that_cannot_be_kept_are_refused(stack: &Stack) -> Result<()> {
    let format = |format: Value| json!({"response_format": format});
    let loose = with(&schema(), &json!({"additionalProperties": true}));
    let unknown = with(&schema(), &json!({"uniqueItems": true}));
    let at = "response_format.json_schema.schema";
    for (more, code, param) in [
        (format(json!({"type": "yaml"})), "invalid_value", "response_format.type"),
        (format(json!({"type": "json_schema"})), "missing_field", "response_format.json_schema"),
        (format(json!({"type": "regex", "regex": "("})), "invalid_value", "response_format.regex"),
        (
            format(json!({"type": "grammar", "grammar": "start: nothing"})),
            "invalid_value",
            "response_format.grammar",
        ),
        (json_schema(&loose, true), "invalid_value", at),
        (json_schema(&unknown, true), "unsupported_parameter", at),
        (json_schema(&json!({"type": "object", "$ref": "#/$defs/none"}), true), "invalid_value", at),
    ] {
        let (status, got, named) = refusal(stack, "/v1/chat/completions", &ask(&more)).await?;
        let named = named.unwrap_or_default();
        assert_eq!((status, got.as_str()), (400, code), "{more}: {named}");
        assert!(named.starts_with(param), "{more}: {named}");
    }
    Ok(())
}
