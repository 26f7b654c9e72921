use std::fs;

use super::super::options::testing::settings;
use super::*;

fn parse_text(text: &str) -> Result<Vec<ModelOptions>, FileError> {
    parse(text.as_bytes(), Path::new("/etc/emberline/models.toml"), &settings())
}

#[test]
fn an_entry_says_what_it_wants_and_the_rest_is_as_for_all() {
    let models = parse_text(
        r#"
        [[model]]
        name = "small"
        source = "weights/small.gguf"
        quantize = "q4"
        precision = "fast"
        slots = 3
        cache_memory = "512MiB"
        max_memory = "2GiB"
        cache_dtype = "f32"
        context_length = 2048
        speculation = "prompt-lookup"

        [[model]]
        name = "org/large"
        source = "hf:org/large"
        cache_memory = 1000

        [[model]]
        name = "simulated-x"
        source = "simulated:7"
        "#,
    )
    .unwrap();
    let small = Settings {
        quantize: Some(Quantize::Q4),
        precision: PrecisionChoice::Fast,
        slots: Some(3),
        max_memory: Some(Bytes(2 << 30)),
        cache_memory: Some(Bytes(512 << 20)),
        cache_dtype: CacheDtype::F32,
        context_length: Some(2048),
        speculation: Speculation::PromptLookup,
        ..settings()
    };
    assert_eq!(models[0].settings, small);
    assert_eq!(models[0].source, Source::Weights("/etc/emberline/weights/small.gguf".parse().unwrap()));
    assert_eq!(models[1].source, Source::Weights("hf:org/large".parse().unwrap()));
    assert_eq!(models[1].settings, Settings { cache_memory: Some(Bytes(1000)), ..settings() });
    assert_eq!(models[2].source, Source::Simulated { tokens_per_s: 7.0 });
    assert_eq!(parse_text(""), Ok(Vec::new()));
}

#[test]
fn the_example_is_one() {
    let example = include_str!("../../../deploy/models.toml");
    assert_eq!(parse_text(example).unwrap()[0].settings, settings());
    let in_full = ["s", "c", "q", "m", "precision"]
        .iter()
        .fold(example.to_owned(), |text, name| text.replace(&format!("\n# {name}"), &format!("\n{name}")));
    let all = parse_text(&in_full).unwrap().remove(0).settings;
    assert_eq!((all.slots, all.cache_memory), (Some(8), Some(Bytes(1 << 30))));
    assert_eq!(all.max_memory, Some(Bytes(20 << 30)));
    assert_eq!((all.cache_dtype, all.speculation), (CacheDtype::F32, Speculation::Off));
    assert_eq!((all.context_length, all.quantize), (Some(4096), Some(Quantize::Q8)));
    assert_eq!(all.precision, PrecisionChoice::Fast);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let model = "[[model]]\nname = 'a'\nsource = 'x.gguf'\n";
    for (text, says) in [
        ("[[model]]\nname = 'a'\n".to_owned(), vec!["line 1", "source"]),
        (format!("{model}slots = 0"), vec!["line 4", "slots is 0"]),
        (format!("{model}slots = 2000"), vec!["slots is 2000", "1024"]),
        (format!("{model}context_length = 0"), vec!["line 4", "context_length is 0"]),
        (format!("{model}quantise = 'q4'"), vec!["line 4", "quantise"]),
        (format!("{model}quantize = 'q5'"), vec!["line 4", "q5", "q4"]),
        (format!("{model}precision = 'half'"), vec!["line 4", "half", "fastest"]),
        (format!("{model}cache_memory = 'lots'"), vec!["line 4", "512MiB"]),
        (format!("{model}cache_memory = true"), vec!["line 4", "512MiB"]),
        (format!("{model}[[models]]"), vec!["line 4", "models"]),
        (format!("{model}[[model]"), vec!["line 4"]),
        ("[[model]]\nname = ''\nsource = 'x'".to_owned(), vec!["model ''", "1 to 200 bytes"]),
        ("[[model]]\nname = 'a'\nsource = ''".to_owned(), vec!["model 'a'", "no source"]),
        ("[[model]]\nname = 'a'\nsource = 'simulated'".to_owned(), vec!["model 'a'", "simulated…"]),
    ] {
        let error = parse_text(&text).unwrap_err().to_string();
        for part in [&["/etc/emberline/models.toml"], &says[..]].concat() {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
    let error = parse(b"name = '\xff'", Path::new("m.toml"), &settings()).unwrap_err().to_string();
    assert!(error.contains("m.toml, line 1") && error.contains("UTF-8"), "{error}");
}

#[test]
fn two_models_of_one_name_are_refused_wherever_they_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("models.toml");
    fs::write(&file, "[[model]]\nname = 'a'\nsource = 'x'\n").unwrap();
    let fixed = vec![ModelOptions::parse("a=y", settings()).unwrap()];
    let error = ModelList::new(fixed, Some(file), settings()).open().unwrap_err();
    assert!(error.to_string().contains("'a': there are two models"), "{error}");
}

#[test]
fn a_file_of_weights_is_not_taken_for_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.gguf");
    fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    let open = |path: &Path| ModelList::new(Vec::new(), Some(path.to_owned()), settings()).open();
    assert_eq!(open(&file).unwrap_err(), FileError::TooLarge { path: file });
    let missing = open(&folder.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("--models"), "{missing}");
}

/// A watched file, and what is wanted.
struct Watched {
    folder: tempfile::TempDir,
    wanted: watch::Receiver<WantedModels>,
    hang_ups: watch::Sender<u32>,
    _task: tokio::task::JoinSet<()>,
}

impl Watched {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.toml");
        fs::write(&path, text).unwrap();
        let (wanted, watched) = ModelList::new(Vec::new(), Some(path), settings()).open().unwrap();
        let (sender, wanted) = watch::channel(wanted);
        let (hang_ups, hang_up) = watch::channel(0);
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move { watched.unwrap().run(hang_up, &sender).await });
        Self { folder, wanted, hang_ups, _task: task }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("models.toml")
    }

    async fn next(&mut self) -> WantedModels {
        tokio::time::timeout(Duration::from_secs(30), self.wanted.changed()).await.unwrap().unwrap();
        self.wanted.borrow_and_update().clone()
    }

    fn names(wanted: &WantedModels) -> Vec<&str> {
        wanted.models.keys().map(String::as_str).collect()
    }
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("[[model]]\nname = '{name}'\nsource = 'x'\n")).collect()
}

#[tokio::test]
async fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
    let mut watched = Watched::new(&list(&["a"]));
    fs::write(watched.path(), list(&["a", "b"])).unwrap();
    let wanted = watched.next().await;
    assert_eq!((Watched::names(&wanted), wanted.revision), (vec!["a", "b"], 1));

    fs::write(watched.path(), "[[model]").unwrap();
    let wanted = watched.next().await;
    assert_eq!((Watched::names(&wanted), wanted.revision), (vec!["a", "b"], 1));
    assert!(wanted.problem.unwrap().contains("line 1"));

    fs::remove_file(watched.path()).unwrap();
    let wanted = watched.next().await;
    assert_eq!(Watched::names(&wanted), ["a", "b"]);
    assert!(wanted.problem.unwrap().contains("--models"));

    // Another file in its place, as editors and Kubernetes put it there.
    let next = watched.folder.path().join("next");
    fs::write(&next, list(&["c"])).unwrap();
    fs::rename(next, watched.path()).unwrap();
    let wanted = watched.next().await;
    assert_eq!((Watched::names(&wanted), &wanted.problem), (vec!["c"], &None));
}

#[tokio::test]
async fn a_hang_up_asks_for_another_try() {
    let mut watched = Watched::new(&list(&["a"]));
    watched.hang_ups.send_modify(|count| *count += 1);
    let wanted = watched.next().await;
    assert_eq!((Watched::names(&wanted), wanted.revision), (vec!["a"], 1));
}

proptest::proptest! {
    #[test]
    fn no_file_makes_the_parser_panic(text in "(\\[\\[model\\]\\]|name|source|=|'|\"|\n|slots|[0-9a-z:é]){0,40}") {
        let _ = parse_text(&text);
    }
}
