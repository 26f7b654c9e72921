//! Reads a file's header: metadata and the list of tensors.
//!
//! Nothing in the file is trusted: every length is checked against what is left of the file
//! before anything is allocated for it.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use emberline_kernels::ggml::{GgmlType, unsupported_name};

use super::metadata::{Array, Metadata, Value};
use super::{GgufError, TensorInfo};

/// Larger headers are refused; the largest vocabularies take some 20 MiB.
const MAX_HEADER: u64 = 256 << 20;
const MAX_METADATA: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 18;
/// The format's own limit for keys. Tensor names are shorter still.
const MAX_NAME: u64 = 65_535;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u32 = 32;

/// The content of a header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Reads the header of a file of `length` bytes.
pub(super) fn read(input: impl Read, length: u64, path: &Arc<Path>) -> Result<Header, GgufError> {
    let mut reader = Reader { input, path, position: 0, length };
    if reader.bytes::<4>("the header")? != *b"GGUF" {
        return Err(GgufError::NotGguf { path: path.to_path_buf() });
    }
    match reader.u32("the header")? {
        2 | 3 => {}
        version if version != 0 && version & 0xFFFF == 0 => {
            return Err(GgufError::BigEndian { path: path.to_path_buf() });
        }
        version => return Err(GgufError::Version { path: path.to_path_buf(), version }),
    }
    let tensor_count = reader.count("tensors", MAX_TENSORS)?;
    let metadata_count = reader.count("metadata values", MAX_METADATA)?;
    let metadata = reader.metadata(metadata_count)?;
    let alignment = metadata.opt_u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(reader.malformed(format!("general.alignment is {alignment}, not a power of two")));
    }
    let mut tensors = reader.tensors(tensor_count)?;
    let data_start = reader.position.next_multiple_of(u64::from(alignment));
    for tensor in &mut tensors {
        reader.place(tensor, data_start, u64::from(alignment))?;
    }
    Ok(Header { metadata, tensors })
}

struct Reader<'a, R> {
    input: R,
    path: &'a Arc<Path>,
    position: u64,
    length: u64,
}

impl<R: Read> Reader<'_, R> {
    fn metadata(&mut self, count: u64) -> Result<Metadata, GgufError> {
        let mut values = HashMap::new();
        for _ in 0..count {
            let key = self.name("a metadata key")?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key)?;
            if values.contains_key(&key) {
                return Err(self.malformed(format!("the metadata has {key} twice")));
            }
            values.insert(key, value);
        }
        Ok(Metadata::new(Arc::clone(self.path), values))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.bytes(key)?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.bytes(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.bytes(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.bytes(key)?))),
            4 => Value::Unsigned(u64::from(self.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.bytes(key)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.bytes(key)?))),
            7 => {
                let [byte] = self.bytes(key)?;
                Value::Bool(self.boolean(byte, key)?)
            }
            8 => Value::String(self.string(key)?),
            9 => Value::Array(self.array(key)?),
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes(key)?)),
            _ => return Err(self.malformed(format!("{key} has the unknown value type {kind}"))),
        })
    }

    fn array(&mut self, key: &str) -> Result<Array, GgufError> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        Ok(match kind {
            0 => Array::U8(self.numbers(count, key, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, key, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, key, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, key, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, key, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, key, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, key, f32::from_le_bytes)?),
            7 => {
                let bytes = self.block(count, key)?;
                let items = bytes.into_iter().map(|byte| self.boolean(byte, key));
                Array::Bool(items.collect::<Result<_, _>>()?)
            }
            8 => {
                // Each takes at least the eight bytes of its length.
                self.need(count.saturating_mul(8), key)?;
                let items = (0..count).map(|_| self.string(key));
                Array::String(items.collect::<Result<_, _>>()?)
            }
            10 => Array::U64(self.numbers(count, key, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, key, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, key, f64::from_le_bytes)?),
            9 => return Err(self.malformed(format!("{key} is an array of arrays, which no model has"))),
            _ => return Err(self.malformed(format!("{key} has the unknown element type {kind}"))),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        key: &str,
        convert: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        let bytes = self.block(count.saturating_mul(N as u64), key)?;
        let (items, _) = bytes.as_chunks::<N>();
        Ok(items.iter().map(|&item| convert(item)).collect())
    }

    fn tensors(&mut self, count: u64) -> Result<Vec<TensorInfo>, GgufError> {
        let mut tensors = Vec::new();
        for _ in 0..count {
            tensors.push(self.tensor()?);
        }
        Ok(tensors)
    }

    /// One entry of the list. Its offset is still relative to the start of the data.
    fn tensor(&mut self) -> Result<TensorInfo, GgufError> {
        let name = self.name("a tensor's name")?;
        let what = format!("the description of the tensor {name}");
        let dimensions = self.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(self.malformed(format!("the tensor {name} has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = usize::try_from(self.u64(&what)?).ok().filter(|&size| size > 0);
            shape.push(
                size.ok_or_else(|| self.malformed(format!("the tensor {name} has an impossible shape")))?,
            );
        }
        shape.reverse();
        let id = self.u32(&what)?;
        let dtype = GgmlType::from_id(id).ok_or_else(|| GgufError::UnsupportedType {
            path: self.path.to_path_buf(),
            tensor: name.clone(),
            dtype: unsupported_name(id),
        })?;
        let offset = self.u64(&what)?;
        let size = self.tensor_size(&name, &shape, dtype)?;
        Ok(TensorInfo { name, shape, dtype, offset, size })
    }

    /// How many bytes a tensor takes.
    fn tensor_size(&self, name: &str, shape: &[usize], dtype: GgmlType) -> Result<usize, GgufError> {
        let row = shape.last().copied().unwrap_or(0);
        if !row.is_multiple_of(dtype.block_len()) {
            let block = dtype.block_len();
            return Err(self.malformed(format!(
                "the tensor {name} has rows of {row}, but {dtype} comes in blocks of {block}"
            )));
        }
        shape
            .iter()
            .try_fold(1_usize, |elements, &size| elements.checked_mul(size))
            .and_then(|elements| (elements / dtype.block_len()).checked_mul(dtype.block_bytes()))
            .ok_or_else(|| self.malformed(format!("the tensor {name} has an impossible shape")))
    }

    /// Makes a tensor's offset absolute and checks that all of it lies in the file.
    fn place(&self, tensor: &mut TensorInfo, data_start: u64, alignment: u64) -> Result<(), GgufError> {
        let name = &tensor.name;
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(self.malformed(format!("the tensor {name} is not aligned to {alignment} bytes")));
        }
        tensor.offset = tensor.offset.saturating_add(data_start);
        if tensor.end() > self.length {
            return Err(self.truncated(format!("the tensor {name}"), tensor.end()));
        }
        Ok(())
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, GgufError> {
        let count = self.u64("the header")?;
        if count > most {
            return Err(self.malformed(format!("it claims {count} {what}")));
        }
        Ok(count)
    }

    /// A string that is fit for messages.
    fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        if length > MAX_NAME {
            return Err(self.malformed(format!("{what} is {length} bytes long")));
        }
        let name = self.text(length, what)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(self.malformed(format!("{what} is {name:?}")));
        }
        Ok(name)
    }

    fn string(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        self.text(length, what)
    }

    fn text(&mut self, length: u64, what: &str) -> Result<String, GgufError> {
        let bytes = self.block(length, what)?;
        String::from_utf8(bytes).map_err(|_| self.malformed(format!("{what} is not UTF-8")))
    }

    fn boolean(&self, byte: u8, what: &str) -> Result<bool, GgufError> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed(format!("{what} has the truth value {byte}"))),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn block(&mut self, length: u64, what: &str) -> Result<Vec<u8>, GgufError> {
        self.need(length, what)?;
        let length = usize::try_from(length).map_err(|_| self.malformed(format!("{what} is too long")))?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<(), GgufError> {
        let length = bytes.len() as u64;
        self.need(length, what)?;
        self.input.read_exact(bytes).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => self.truncated(what.to_owned(), self.position + length),
            _ => GgufError::Io { path: self.path.to_path_buf(), source },
        })?;
        self.position += length;
        Ok(())
    }

    /// Checks that the next `length` bytes exist and that the header stays within its bound.
    fn need(&self, length: u64, what: &str) -> Result<(), GgufError> {
        let end = self.position.saturating_add(length);
        if end > self.length {
            return Err(self.truncated(what.to_owned(), end));
        }
        if end > MAX_HEADER {
            return Err(self.malformed(format!("{what} makes the header longer than {MAX_HEADER} bytes")));
        }
        Ok(())
    }

    fn truncated(&self, what: String, needed: u64) -> GgufError {
        GgufError::Truncated { path: self.path.to_path_buf(), what, needed, length: self.length }
    }

    fn malformed(&self, what: String) -> GgufError {
        GgufError::Malformed { path: self.path.to_path_buf(), what }
    }
}
