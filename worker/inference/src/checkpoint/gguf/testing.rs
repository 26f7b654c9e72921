//! Writes small GGUF files for tests.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{GgmlType, GgufFile};

/// A metadata value as it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Item<'a> {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Strs(&'a [String]),
    I32s(&'a [i32]),
    F32s(&'a [f32]),
    /// A value type and the bytes that follow it.
    Raw(u32, &'a [u8]),
}

struct Tensor {
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    dtype: u32,
    data: Vec<u8>,
}

/// Builds a file, which may be invalid.
pub(crate) struct GgufBuilder {
    version: u32,
    alignment: usize,
    values: u64,
    metadata: Vec<u8>,
    tensors: Vec<Tensor>,
}

impl GgufBuilder {
    pub(crate) fn new() -> Self {
        Self { version: 3, alignment: 32, values: 0, metadata: Vec::new(), tensors: Vec::new() }
    }

    pub(crate) fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Where tensors are placed; `general.alignment` is written with it.
    pub(crate) fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = alignment as usize;
        self.set("general.alignment", Item::U32(alignment))
    }

    pub(crate) fn set(mut self, key: &str, item: Item<'_>) -> Self {
        self.values += 1;
        put_string(&mut self.metadata, key);
        let (kind, payload) = encode(item);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(payload);
        self
    }

    /// A tensor, `shape` outermost first.
    pub(crate) fn tensor(self, name: &str, shape: &[usize], dtype: GgmlType, data: &[u8]) -> Self {
        self.tensor_of_type(name, shape, dtype.id(), data)
    }

    pub(crate) fn tensor_f32(self, name: &str, shape: &[usize], numbers: &[f32]) -> Self {
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.tensor(name, shape, GgmlType::F32, &data)
    }

    pub(crate) fn tensor_of_type(mut self, name: &str, shape: &[usize], dtype: u32, data: &[u8]) -> Self {
        let (name, shape, data) = (name.to_owned(), shape.to_vec(), data.to_vec());
        self.tensors.push(Tensor { name, shape, dtype, data });
        self
    }

    /// A byte-level tokenizer without merges: token i is byte i; then come `<|im_start|>` (256) and
    /// `<|im_end|>` (257, the end); and a template that writes turns in the manner of ChatML.
    pub(crate) fn with_byte_tokenizer(self) -> Self {
        let mut tokens: Vec<String> = (0..=255).map(|byte| byte_character(byte).to_string()).collect();
        tokens.extend(["<|im_start|>", "<|im_end|>"].map(String::from));
        let types: Vec<i32> = (0..tokens.len()).map(|id| if id < 256 { 1 } else { 3 }).collect();
        self.set("tokenizer.ggml.model", Item::Str("gpt2"))
            .set("tokenizer.ggml.pre", Item::Str("smollm"))
            .set("tokenizer.ggml.tokens", Item::Strs(&tokens))
            .set("tokenizer.ggml.token_type", Item::I32s(&types))
            .set("tokenizer.ggml.merges", Item::Strs(&[]))
            .set("tokenizer.ggml.bos_token_id", Item::U32(256))
            .set("tokenizer.ggml.eos_token_id", Item::U32(257))
            .set(
                "tokenizer.chat_template",
                Item::Str(
                    "{% for message in messages %}{{ bos_token + message.role + '\\n' + message.content + \
                     eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ bos_token + \
                     'assistant\\n' }}{% endif %}",
                ),
            )
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(self.values.to_le_bytes());
        out.extend(&self.metadata);
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            put_string(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for &size in tensor.shape.iter().rev() {
                out.extend((size as u64).to_le_bytes());
            }
            out.extend(tensor.dtype.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }

    /// Writes the file and opens it; it lives as long as the folder that comes with it.
    pub(crate) fn open(&self) -> (TempDir, GgufFile) {
        let (folder, path) = write(&self.bytes());
        let file = GgufFile::open(&path).unwrap();
        (folder, file)
    }
}

/// A file `model.gguf` in a folder of its own.
pub(crate) fn write(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// How a byte-level vocabulary writes a byte.
pub(crate) fn byte_character(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
        0..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte - 0x7F),
        0xAD => 0x143,
    };
    char::from_u32(code).unwrap()
}

fn encode(item: Item<'_>) -> (u32, Vec<u8>) {
    match item {
        Item::U32(number) => (4, number.to_le_bytes().to_vec()),
        Item::F32(number) => (6, number.to_le_bytes().to_vec()),
        Item::Bool(truth) => (7, vec![u8::from(truth)]),
        Item::Str(text) => {
            let mut payload = Vec::new();
            put_string(&mut payload, text);
            (8, payload)
        }
        Item::Strs(items) => (9, array(8, items, |out, item| put_string(out, item))),
        Item::I32s(items) => (9, array(5, items, |out, item| out.extend(item.to_le_bytes()))),
        Item::F32s(items) => (9, array(6, items, |out, item| out.extend(item.to_le_bytes()))),
        Item::Raw(kind, payload) => (kind, payload.to_vec()),
    }
}

fn array<T>(kind: u32, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend((items.len() as u64).to_le_bytes());
    for item in items {
        put(&mut out, item);
    }
    out
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
