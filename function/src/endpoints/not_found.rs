//! What is here instead of what a path asks for: other servers' endpoints, and misspelt ones.

/// Beginnings of paths, without `/v1`, and what to do instead. The first that fits counts. What ends with a
/// letter is a whole segment, unless a `*` follows.
const INSTEAD: &[(&[&str], &str)] = &[
    (&["/v1/"], "The client's base URL has '/v1' already; leave one of the two out."),
    (
        &["/messages", "/complete"],
        "Anthropic's API is not here. Conversations go to 'POST /v1/chat/completions' or 'POST /v1/responses'.",
    ),
    (
        &["/responses/compact"],
        "Conversations are not compacted here. Send a shorter 'input' to 'POST /v1/responses'.",
    ),
    (
        &["/responses/"],
        "Of a response there are 'GET' and 'DELETE /v1/responses/{id}' and 'POST /v1/responses/{id}/cancel'; its input is not kept.",
    ),
    (
        &["/chat/completions/"],
        "Chat completions are not stored. A response with 'background': true can be fetched: 'POST /v1/responses'.",
    ),
    (&["/chat"], "Chat completions are at 'POST /v1/chat/completions'."),
    (
        &["/completion", "/infill", "/generate", "/generate_stream", "/engines/"],
        "Text completions are at 'POST /v1/completions'.",
    ),
    (
        &["/embed*", "/rerank", "/score", "/pooling", "/classify", "/similarity", "/moderations"],
        "Models here write text: they make no embeddings, ranks or scores. Conversations go to 'POST /v1/chat/completions'.",
    ),
    (
        &["/images", "/audio", "/videos", "/realtime"],
        "Models here read and write text only: 'POST /v1/chat/completions' or 'POST /v1/responses'.",
    ),
    (
        &[
            "/files",
            "/batches",
            "/fine_tuning",
            "/vector_stores",
            "/uploads",
            "/assistants",
            "/threads",
            "/conversations",
            "/containers",
            "/evals",
            "/prompts",
        ],
        "Nothing is stored here but responses with 'background': true, for some time: 'POST /v1/responses'.",
    ),
    (
        &["/metrics", "/load", "/stats"],
        "Metrics are not told over HTTP. 'GET /ready' says what is served; the operator's command 'emberline status' says how busy workers are.",
    ),
    (
        &["/props", "/slots", "/server_info", "/get_model_info", "/get_server_info", "/model_info", "/info"],
        "'GET /v1/models' lists models and their context lengths, 'GET /version' the version.",
    ),
    (&["/ping", "/live", "/healthz", "/status", "/startup"], "There are 'GET /health' and 'GET /ready'."),
    (
        &["/api/", "/v1beta/", "/openai/", "/v2/", "/invocations"],
        "This server speaks OpenAI's API: 'POST /v1/chat/completions', 'POST /v1/responses', 'POST /v1/completions' and 'GET /v1/models'.",
    ),
    (
        &["/tokeniz*", "/detokeniz*", "/apply_template", "/apply-template"],
        "There are 'POST /tokenize' and 'POST /detokenize'.",
    ),
    (&["/docs", "/redoc", "/openapi*", "/swagger*"], "'GET /openapi.json' describes the API."),
    (&["/model*"], "'GET /v1/models' lists the models, 'GET /v1/models/{id}' describes one."),
];

/// What to do instead of asking for `path`.
pub(super) fn instead_of(path: &str) -> &'static str {
    let path = path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    let begins = |beginning: &&str| match beginning.strip_suffix('*') {
        Some(beginning) => path.starts_with(beginning),
        None => path
            .strip_prefix(*beginning)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || beginning.ends_with('/')),
    };
    INSTEAD.iter().find(|(beginnings, _)| beginnings.iter().any(begins)).map_or(
        "'GET /openapi.json' lists what is here, such as 'POST /v1/chat/completions' and 'GET /v1/models'.",
        |(_, instead)| instead,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_answered_with_what_is_near_it() {
        for (path, word) in [
            ("/v1/messages", "Anthropic"),
            ("/v1/messages/count_tokens", "Anthropic"),
            ("/v1/responses/compact", "compacted"),
            ("/v1/responses/resp_1/input_items", "input is not kept"),
            ("/v1/chat", "POST /v1/chat/completions"),
            ("/v1/chat/completions/chatcmpl-1", "not stored"),
            ("/v1/v1/chat/completions", "base URL"),
            ("/completion", "POST /v1/completions"),
            ("/v1/rerank", "no embeddings"),
            ("/v1/images/generations", "text only"),
            ("/v1/files", "Nothing is stored"),
            ("/metrics", "emberline status"),
            ("/v1/load_lora_adapter", "GET /openapi.json"),
            ("/v1/embeddings/x", "no embeddings"),
            ("/api/chat", "OpenAI's API"),
            ("/props", "GET /v1/models"),
            ("/ping", "GET /health"),
            ("/docs", "openapi.json"),
            ("/", "GET /openapi.json"),
            ("/v1", "GET /openapi.json"),
            ("/secret", "GET /openapi.json"),
        ] {
            assert!(instead_of(path).contains(word), "{path}: {}", instead_of(path));
        }
    }
}
