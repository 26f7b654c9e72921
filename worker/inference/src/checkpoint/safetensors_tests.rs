use std::fs;

use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// A file with tensors of four bytes each.
fn file(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
    let data = [0, 0, 128, 63];
    let views = tensors.iter().map(|(name, dtype, shape)| {
        let view = TensorView::new(*dtype, shape.to_vec(), &data).unwrap();
        (name.to_string(), view)
    });
    safetensors::serialize(views, None).unwrap()
}

fn index(entries: &[(&str, &str)]) -> Vec<u8> {
    let map: BTreeMap<_, _> = entries.iter().copied().collect();
    serde_json::to_vec(&serde_json::json!({ "weight_map": map })).unwrap()
}

fn open_error(files: &[(&str, Vec<u8>)]) -> String {
    SafetensorsFolder::open(folder(files).path()).unwrap_err().to_string()
}

#[test]
fn tensors_of_all_files_are_found() {
    let folder = folder(&[
        ("a.safetensors", file(&[("x", Dtype::F32, &[1]), ("y", Dtype::BF16, &[2, 1])])),
        ("b.safetensors", file(&[("z", Dtype::F16, &[2])])),
        (INDEX, index(&[("x", "a.safetensors"), ("y", "a.safetensors"), ("z", "b.safetensors")])),
    ]);
    assert!(SafetensorsFolder::exists(folder.path()));
    let opened = SafetensorsFolder::open(folder.path()).unwrap();
    let mut names = opened.names();
    names.sort();
    assert_eq!(names, ["x", "y", "z"]);
    assert_eq!(opened.describe("y").unwrap(), (&[2, 1][..], GgmlType::BF16));
    assert_eq!(opened.describe("z").unwrap(), (&[2][..], GgmlType::F16));
    assert_eq!(opened.read("x").unwrap(), 1.0_f32.to_le_bytes());
    assert_eq!(opened.read("z").unwrap(), [0, 0, 128, 63]);
    let error = opened.read("w").unwrap_err().to_string();
    assert!(error.contains("the tensor w is missing"), "{error}");
}

#[test]
fn damaged_files_are_refused_by_their_names() {
    let good = file(&[("x", Dtype::F32, &[1])]);
    let long = [good.clone(), vec![0]].concat();
    let huge = [u64::MAX.to_le_bytes().to_vec(), good.clone()].concat();
    let no_json = [3_u64.to_le_bytes().to_vec(), b"abc".to_vec()].concat();
    for (bytes, what) in [
        (good[..good.len() - 1].to_vec(), "bytes long"),
        (long, "bytes long"),
        (huge, "header would be"),
        (no_json, "not valid"),
        (vec![1, 2], "ends within its header"),
    ] {
        let error = open_error(&[(SINGLE, bytes)]);
        assert!(error.contains(what) && error.contains(SINGLE), "{error}");
    }
    let error = SafetensorsFolder::open(folder(&[]).path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::Io { path, .. } if path.ends_with(SINGLE)), "{error}");
}

#[test]
fn an_index_names_files_of_its_folder_only() {
    for name in ["../a.safetensors", "/etc/passwd", "..", "a/b.safetensors"] {
        let error = open_error(&[(INDEX, index(&[("x", name)]))]);
        assert!(error.contains("is no file's name"), "{error}");
    }
    let error = open_error(&[(INDEX, b"[]".to_vec())]);
    assert!(error.contains(INDEX), "{error}");
}

#[test]
fn a_tensor_in_two_files_is_refused() {
    let error = open_error(&[
        ("a.safetensors", file(&[("x", Dtype::F32, &[1])])),
        ("b.safetensors", file(&[("x", Dtype::F32, &[1])])),
        (INDEX, index(&[("x", "a.safetensors"), ("y", "b.safetensors")])),
    ]);
    assert!(error.contains("the tensor x is in") && error.contains("a.safetensors"), "{error}");
}

#[test]
fn other_types_of_numbers_are_refused_when_they_are_needed() {
    let folder = folder(&[(SINGLE, file(&[("x", Dtype::I32, &[1])]))]);
    let opened = SafetensorsFolder::open(folder.path()).unwrap();
    let error = opened.describe("x").unwrap_err().to_string();
    assert!(error.contains("the tensor x has type I32"), "{error}");
}
