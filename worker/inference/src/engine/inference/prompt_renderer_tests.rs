use std::path::Path;

use emberline_protocol::job::{Message, Role, Tool, ToolChoice};
use emberline_protocol::subject::JobId;
use emberline_protocol::tools::ToolFormat;
use serde_json::{Value, json};

use super::*;

/// A tiny model of a family, as the tests of families have it.
fn prompts(family: &str) -> PromptRenderer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families").join(family);
    let tokenizer = ModelTokenizer::from_hf_dir(&folder).unwrap();
    PromptRenderer {
        template: ChatTemplate::from_hf_dir(&folder).unwrap(),
        grammars: GrammarCompiler::new(&tokenizer).unwrap(),
        tokenizer: Arc::new(tokenizer),
        context_length: 4096,
    }
}

fn prepare(prompts: &PromptRenderer, request: GenerationRequest) -> Result<PreparedRequest, ApiError> {
    let job = Job {
        v: emberline_protocol::PROTOCOL_VERSION,
        id: JobId::from_random(1),
        model: "tiny".to_owned(),
        created: 0,
        deadline: u64::MAX,
        request,
        seed: 0,
        background: None,
        account: None,
    };
    prompts.prepare(job, Instant::now())
}

fn refused(prompts: &PromptRenderer, request: GenerationRequest) -> (ErrorCode, String) {
    let error = prepare(prompts, request).unwrap_err();
    assert!(
        error.message.contains("messages") || error.message.contains(error.param.as_ref().unwrap()),
        "{error:?}"
    );
    (error.code, error.param.unwrap())
}

fn raw(prompt: RawPrompt) -> GenerationRequest {
    GenerationRequest { prompt: Some(prompt), echo: true, ..GenerationRequest::default() }
}

fn text(text: &str) -> GenerationRequest {
    raw(RawPrompt::Text(text.to_owned()))
}

fn chat() -> GenerationRequest {
    GenerationRequest { messages: vec![Message::new(Role::User, "hi")], ..GenerationRequest::default() }
}

#[test]
fn a_raw_prompt_is_encoded_as_the_tokenizer_does_it() {
    // Llama 2 begins every text with a token of its own, Qwen does not.
    let prompts = prompts("llama2");
    let prepared = prepare(&prompts, text("Hello there")).unwrap();
    let bos = prompts.tokenizer.encode("<s>").unwrap();
    assert!(prepared.prompt.starts_with(&bos) && prepared.prompt.len() > 2);
    assert_eq!(prepared.acceptance.prompt_text.as_deref(), Some("Hello there"));
    assert_eq!(prepared.acceptance.tool_format, None);
    // It is not put there twice.
    assert_eq!(prepare(&prompts, text("<s>Hello there")).unwrap().prompt[1..], prepared.prompt[1..]);
    let silent = GenerationRequest { echo: false, ..text("Hello there") };
    assert_eq!(prepare(&prompts, silent).unwrap().acceptance.prompt_text, None);
}

#[test]
fn tokens_are_taken_as_they_are_and_read_as_their_text() {
    let prompts = prompts("qwen3");
    let ids = prompts.tokenizer.encode("Hello <|im_end|>").unwrap();
    let prepared = prepare(&prompts, raw(RawPrompt::Tokens(ids.clone()))).unwrap();
    assert_eq!(prepared.prompt, ids);
    assert_eq!(prepared.acceptance.prompt_text.as_deref(), Some("Hello <|im_end|>"));
    let vocabulary = u32::try_from(prompts.tokenizer.vocab_size()).unwrap();
    let bad = raw(RawPrompt::Tokens(vec![1, 2, vocabulary]));
    assert_eq!(refused(&prompts, bad), (ErrorCode::InvalidValue, "prompt[2]".to_owned()));
}

#[test]
fn empty_and_long_prompts_are_refused_by_name() {
    for family in ["qwen3", "llama2"] {
        let prompts = prompts(family);
        for empty in [text(""), raw(RawPrompt::Tokens(Vec::new()))] {
            assert_eq!(refused(&prompts, empty), (ErrorCode::InvalidValue, "prompt".to_owned()));
        }
        let too_long = (ErrorCode::ContextLengthExceeded, "prompt".to_owned());
        assert_eq!(refused(&prompts, text(&"x 1 ".repeat(100_000))), too_long);
        assert_eq!(refused(&prompts, raw(RawPrompt::Tokens(vec![1; 4096]))), too_long);
    }
}

#[test]
fn a_job_with_tools_says_how_calls_are_written() {
    let tool =
        Tool { name: "f".to_owned(), description: None, parameters: serde_json::Map::new(), strict: false };
    let with_tools = GenerationRequest { tools: vec![tool], ..chat() };
    for (family, format) in [
        ("qwen3", ToolFormat::Hermes),
        ("llama3", ToolFormat::Llama),
        ("mistral", ToolFormat::Mistral),
        ("phi3", ToolFormat::Hermes),
    ] {
        let prompts = prompts(family);
        let prepared = prepare(&prompts, with_tools.clone()).unwrap();
        assert_eq!(prepared.acceptance.tool_format, Some(format), "{family}");
        assert!(prepared.prompt.len() > prepare(&prompts, chat()).unwrap().prompt.len() + 20);
        let none = GenerationRequest { tool_choice: ToolChoice::None, ..with_tools.clone() };
        let prepared = prepare(&prompts, none).unwrap();
        assert_eq!(
            (prepared.acceptance.tool_format, prepared.prompt),
            (None, prepare(&prompts, chat()).unwrap().prompt)
        );
    }
}

#[test]
fn variables_go_to_the_template_or_the_answer_does_without_them() {
    let prompts = prompts("qwen3");
    let with = |name: &str, value: Value| GenerationRequest {
        template_variables: serde_json::Map::from_iter([(name.to_owned(), value)]),
        ..chat()
    };
    let thoughtless = prepare(&prompts, with("enable_thinking", json!(false))).unwrap().prompt;
    assert_ne!(thoughtless, prepare(&prompts, chat()).unwrap().prompt);
    for (name, param) in [
        ("reasoning_effort", "chat_template_kwargs.reasoning_effort"),
        ("nothing", "chat_template_kwargs.nothing"),
        ("messages", "chat_template_kwargs.messages"),
    ] {
        let prepared = prepare(&prompts, with(name, json!("low"))).unwrap();
        assert_eq!(prepared.acceptance.relaxed.paths(), [param]);
        assert_eq!(prepared.prompt, prepare(&prompts, chat()).unwrap().prompt);
    }
    let both = GenerationRequest {
        template_variables: serde_json::Map::from_iter([
            ("enable_thinking".to_owned(), json!(false)),
            ("verbosity".to_owned(), json!("low")),
        ]),
        ..chat()
    };
    let prepared = prepare(&prompts, both).unwrap();
    assert_eq!(
        (prepared.prompt, prepared.acceptance.relaxed.paths()),
        (thoughtless, &["chat_template_kwargs.verbosity".to_owned()][..])
    );
}

#[test]
fn an_answer_goes_on_with_the_last_message() {
    for family in ["qwen3", "llama2", "llama3", "mistral", "gemma3", "phi3"] {
        let prompts = prompts(family);
        let open = |content: &str| {
            let mut request = chat();
            request.messages.push(Message::new(Role::Assistant, content));
            (request.add_generation_prompt, request.continue_final_message) = (false, true);
            prompts.tokenizer.decode(&prepare(&prompts, request).unwrap().prompt)
        };
        let text = open("Well, it");
        assert!(text.ends_with("Well, it"), "{family}: {text}");
        // What comes before is what an answer begins with.
        let fresh = prompts.tokenizer.decode(&prepare(&prompts, chat()).unwrap().prompt);
        let before = text.strip_suffix("Well, it").unwrap();
        assert!(before.starts_with(fresh.trim_end()), "{family}: {before}");
    }
    let prompts = prompts("qwen3");
    let closed = GenerationRequest { add_generation_prompt: false, ..chat() };
    let text = prompts.tokenizer.decode(&prepare(&prompts, closed).unwrap().prompt);
    assert!(text.ends_with("hi<|im_end|>\n"), "{text}");
}

#[test]
fn a_prompt_has_no_more_log_probabilities_than_a_log_holds() {
    let prompts = prompts("qwen3");
    let scored = |top, n| GenerationRequest {
        prompt: Some(RawPrompt::Tokens(vec![1; 2048])),
        prompt_logprobs: Some(top),
        n,
        max_tokens: Some(1),
        ..GenerationRequest::default()
    };
    assert!(prepare(&prompts, scored(20, 3)).is_ok());
    let refusal = (ErrorCode::InvalidValue, "prompt_logprobs".to_owned());
    assert_eq!(refused(&prompts, scored(20, 4)), refusal);
    let echo = GenerationRequest { echo: true, logprobs: Some(4), ..scored(4, 16) };
    assert_eq!(refused(&prompts, echo), (ErrorCode::InvalidValue, "logprobs".to_owned()));
}

#[test]
fn bad_words_are_found_in_the_middle_of_a_text_too() {
    let prompts = prompts("qwen3");
    let words = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        bad_words::tokens(&words, &prompts.tokenizer)
    };
    let encode = |text: &str| prompts.tokenizer.encode(text).unwrap();
    let found = words(&["Hello", " Hello", "Hello"]).unwrap();
    assert!(found.contains(&encode("Hello")));
    assert!(found.len() <= 2, "no word twice: {found:?}");
    if encode(" Hello").len() == encode("Hello").len() {
        assert!(found.contains(&encode(" Hello")));
    }
    assert_eq!(words(&["a", "  "]).unwrap_err().param.as_deref(), Some("bad_words[1]"));
}
