//! Tokenizers and chat templates of each family against what transformers and sentencepiece make
//! of the same files (`families/make.py` wrote both).

#![allow(clippy::unwrap_used)] // also in the functions that tests call

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use emberline_inference::checkpoint::gguf::GgufFile;
use emberline_inference::template::{ChatTemplate, Conversation, TemplateError};
use emberline_inference::tokenizer::ModelTokenizer;
use emberline_protocol::job::{Message, Tool};
use proptest::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
struct TokenizerCases {
    vocab_size: usize,
    end_of_generation: BTreeSet<u32>,
    added_bos: Option<u32>,
    cases: Vec<TextCase>,
}

#[derive(Deserialize)]
struct TextCase {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct ChatCases {
    now: u64,
    cases: Vec<ChatCase>,
}

#[derive(Deserialize)]
struct ChatCase {
    messages: Vec<Message>,
    tools: Vec<Tool>,
    variables: serde_json::Map<String, serde_json::Value>,
    prompt: Option<String>,
    #[serde(default)]
    ids: Vec<u32>,
    refused: Option<String>,
}

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families")
}

/// The folders that have a file of this name.
fn folders_with(file: &str) -> Vec<PathBuf> {
    let folders = fs::read_dir(families()).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<PathBuf> = folders.filter(|folder| folder.join(file).exists()).collect();
    assert!(folders.len() >= 17, "{folders:?}");
    folders
}

fn json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn gguf(folder: &Path) -> Option<GgufFile> {
    let path = folder.join("model.gguf");
    path.exists().then(|| GgufFile::open(&path).unwrap())
}

fn tokenizer(folder: &Path) -> ModelTokenizer {
    match gguf(folder) {
        Some(file) => ModelTokenizer::from_gguf(&file).unwrap(),
        None => ModelTokenizer::from_hf_dir(folder).unwrap(),
    }
}

/// What the ids read as an answer.
fn read(tokenizer: &ModelTokenizer, ids: &[u32]) -> Vec<u8> {
    let mut ids = ids.iter().filter(|&&id| !tokenizer.token_bytes(id).is_empty());
    let first = ids.next().map_or(&[][..], |&id| tokenizer.first_token_bytes(id));
    let rest = ids.flat_map(|&id| tokenizer.token_bytes(id));
    first.iter().chain(rest).copied().collect()
}

#[test]
fn texts_have_the_ids_of_the_reference_and_read_the_same() {
    for folder in folders_with("tokenizer_cases.json") {
        let tokenizer = tokenizer(&folder);
        let wanted: TokenizerCases = json(&folder.join("tokenizer_cases.json"));
        let name = folder.display();
        for case in &wanted.cases {
            let ids = tokenizer.encode(&case.text).unwrap();
            assert_eq!(ids, case.ids, "{name}: {:?}", case.text);
            let text = read(&tokenizer, &ids);
            // A character that is cut off may become one U+FFFD or several.
            assert_eq!(String::from_utf8_lossy(&text), case.decoded, "{name}: {:?}", case.text);
            assert!(tokenizer.least_tokens(&case.text) <= ids.len(), "{name}: {:?}", case.text);
        }
        assert_eq!(tokenizer.vocab_size(), wanted.vocab_size, "{name}");
        assert_eq!(
            tokenizer.end_of_generation().collect::<BTreeSet<_>>(),
            wanted.end_of_generation,
            "{name}"
        );
        let begins = tokenizer.encode_prompt("").unwrap();
        assert_eq!(begins, wanted.added_bos.into_iter().collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn chats_make_the_prompts_of_the_reference() {
    for folder in folders_with("chat_cases.json") {
        let tokenizer = tokenizer(&folder);
        let first = json::<TokenizerCases>(&folder.join("tokenizer_cases.json")).added_bos;
        let template = match gguf(&folder) {
            Some(file) => ChatTemplate::from_gguf(&file),
            None => ChatTemplate::from_hf_dir(&folder),
        };
        let template = template.unwrap();
        let wanted: ChatCases = json(&folder.join("chat_cases.json"));
        for case in wanted.cases {
            let name = format!("{}: {:?} {:?}", folder.display(), case.messages, case.variables);
            let conversation = Conversation {
                tools: &case.tools,
                variables: case.variables,
                ..Conversation::new(&case.messages, wanted.now)
            };
            match (template.render(&conversation), case.prompt) {
                (Ok(prompt), Some(wanted)) => {
                    assert_eq!(prompt, wanted, "{name}");
                    assert_eq!(tokenizer.encode(&prompt).unwrap(), case.ids, "{name}");
                    let ids = tokenizer.encode_prompt(&prompt).unwrap();
                    let added = first.filter(|first| case.ids.first() != Some(first));
                    assert_eq!(ids, added.into_iter().chain(case.ids).collect::<Vec<_>>(), "{name}");
                }
                (Err(TemplateError::Refused(message)), _) => {
                    assert_eq!(Some(message), case.refused, "{name}");
                }
                (other, _) => panic!("{name}: {other:?}"),
            }
        }
    }
}

/// The families that neither compose characters nor take spaces into special tokens.
const FAITHFUL: [&str; 7] =
    ["llama2", "llama3", "llama-linear", "llama-yarn", "gemma3", "llama2-gguf", "gemma3-gguf"];

static TOKENIZERS: LazyLock<Vec<(&str, ModelTokenizer)>> =
    LazyLock::new(|| FAITHFUL.map(|family| (family, tokenizer(&families().join(family)))).into());

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_comes_back(
        text in r"([ \n\t]{1,5}|[a-zA-Z']{1,9}|[0-9.,]{1,4}|<0x4|[éß日本🙂\u{301}\u{200d}\x00]{1,3}|[^▁]){0,12}",
    ) {
        for (family, tokenizer) in TOKENIZERS.iter() {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(String::from_utf8(read(tokenizer, &ids)).unwrap(), text.as_str(), "{}", family);
            prop_assert!(tokenizer.least_tokens(&text) <= ids.len());
        }
    }
}
