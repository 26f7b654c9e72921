use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::*;

fn parse(text: &str) -> ModelSource {
    let Ok(source) = text.parse();
    source
}

fn hub(repository: &str, revision: &str, file: Option<&str>) -> ModelSource {
    ModelSource::Hub {
        repository: repository.to_owned(),
        revision: revision.to_owned(),
        file: file.map(str::to_owned),
    }
}

#[test]
fn sources_read_what_they_write() {
    for (text, source) in [
        ("models/x.gguf", ModelSource::Path(PathBuf::from("models/x.gguf"))),
        ("hf:org/name", hub("org/name", "main", None)),
        ("hf:org/name@v1.0", hub("org/name", "v1.0", None)),
        ("hf:org/name/x.Q4_0.gguf", hub("org/name", "main", Some("x.Q4_0.gguf"))),
        ("hf:org/name/sub/x.gguf@abc", hub("org/name", "abc", Some("sub/x.gguf"))),
        ("hf:gpt2", hub("gpt2", "main", None)),
    ] {
        assert_eq!(parse(text), source);
        assert_eq!(source.to_string(), text);
    }
}

/// A hub with one repository, which counts what it is asked for. It lives as long as the test.
struct FakeHub {
    endpoint: String,
    requests: Arc<AtomicUsize>,
    sha: Arc<Mutex<&'static str>>,
    cache: TempDir,
}

type Files = Vec<(&'static str, Vec<u8>)>;

impl FakeHub {
    fn new(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (requests, sha) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new("c0ffee")));
        let (counter, commit) = (Arc::clone(&requests), Arc::clone(&sha));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                counter.fetch_add(1, Ordering::Relaxed);
                answer(stream, &files, *commit.lock().unwrap());
            }
        });
        Self { endpoint, requests, sha, cache: tempfile::tempdir().unwrap() }
    }

    fn fetch_from(&self, endpoint: &str, file: Option<&str>) -> Result<PathBuf, CheckpointError> {
        let cache = Cache::new(self.cache.path().to_owned());
        let builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(endpoint.to_owned());
        Hub::new(builder, cache, "org/name", "main").unwrap().fetch(file)
    }

    fn fetch(&self, file: Option<&str>) -> Result<PathBuf, CheckpointError> {
        self.fetch_from(&self.endpoint, file)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, files: &Files, sha: &str) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let range = lines.by_ref().take_while(|line| !line.is_empty()).find_map(|line| {
        let line = line.to_lowercase();
        line.strip_prefix("range: bytes=").map(str::to_owned)
    });
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let found = files.iter().find(|(name, _)| target.ends_with(&format!("/org/name/resolve/{sha}/{name}")));
    let (head, body) = if target.starts_with("/api/models/org/name") {
        let siblings: Vec<_> =
            files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "siblings": siblings, "sha": sha }).to_string().into_bytes();
        ("200 OK".to_owned(), body)
    } else if let Some((name, bytes)) = found {
        let (first, last) = range.as_deref().and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
        let (first, end) =
            (first.parse::<usize>().unwrap(), last.parse().map_or(bytes.len(), |last: usize| last + 1));
        let head = format!(
            "206 Partial Content\r\netag: \"{name}-{sha}\"\r\nx-repo-commit: {sha}\r\ncontent-range: bytes {first}-{}/{}",
            end - 1,
            bytes.len()
        );
        (head, bytes[first..end].to_vec())
    } else {
        ("404 Not Found".to_owned(), Vec::new())
    };
    let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    // A client that has gone is no matter here.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn text(name: &'static str) -> (&'static str, Vec<u8>) {
    (name, format!("this is {name}").into_bytes())
}

#[test]
fn a_checkpoint_is_fetched_once_and_found_without_the_hub() {
    let index = br#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}"#;
    let hub = FakeHub::new(vec![
        text("config.json"),
        text("tokenizer.json"),
        text("a.safetensors"),
        text("b.safetensors"),
        text("consolidated.safetensors"),
        text("README.md"),
        (safetensors::INDEX, index.to_vec()),
    ]);
    let folder = hub.fetch(None).unwrap();
    let mut found: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(
        found,
        ["a.safetensors", "b.safetensors", "config.json", safetensors::INDEX, "tokenizer.json"]
    );
    assert_eq!(std::fs::read(folder.join("b.safetensors")).unwrap(), b"this is b.safetensors");
    // The second time, only the list is asked for.
    let before = hub.requests();
    assert_eq!(hub.fetch(None).unwrap(), folder);
    assert_eq!(hub.requests(), before + 1);
    // Nobody listens at port 1.
    assert_eq!(hub.fetch_from("http://127.0.0.1:1", None).unwrap(), folder);
    // A new commit is fetched into a folder of its own.
    *hub.sha.lock().unwrap() = "facade";
    let newer = hub.fetch(None).unwrap();
    assert!(newer != folder && newer.join("tokenizer.json").exists(), "{}", newer.display());
    assert_eq!(hub.fetch_from("http://127.0.0.1:1", None).unwrap(), newer);
}

#[test]
fn a_gguf_file_is_fetched_by_its_name_or_if_it_is_the_only_one() {
    let one = FakeHub::new(vec![text("README.md"), text("x.gguf")]);
    assert_eq!(std::fs::read(one.fetch(None).unwrap()).unwrap(), b"this is x.gguf");
    let two = FakeHub::new(vec![text("x.gguf"), text("y.gguf")]);
    let error = two.fetch(None).unwrap_err().to_string();
    assert!(error.contains("hf:org/name") && error.contains("x.gguf, y.gguf"), "{error}");
    let path = two.fetch(Some("y.gguf")).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"this is y.gguf");
    let error = two.fetch(Some("z.gguf")).unwrap_err().to_string();
    assert!(error.contains("z.gguf"), "{error}");
}

#[test]
fn what_is_nowhere_is_an_error() {
    let hub = FakeHub::new(vec![text("README.md")]);
    let error = hub.fetch(None).unwrap_err().to_string();
    assert!(error.contains("neither safetensors nor GGUF"), "{error}");
    let error = hub.fetch_from("http://127.0.0.1:1", None).unwrap_err().to_string();
    assert!(error.contains("hf:org/name"), "{error}");
}
