//! `/openapi.json` and docs/api.md describe the same endpoints.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use emberline_test_kit::paths::repository;
use emberline_test_kit::stack::{Engine, Options, Stack};
use serde_json::Value;

/// Whether a key is needed, for each method and path.
type Endpoints = BTreeMap<(String, String), bool>;

/// The first table of docs/api.md: endpoints, whether a key is needed, what the answer is.
fn documented() -> Result<Endpoints> {
    let page = std::fs::read_to_string(repository().join("docs/api.md"))?;
    let rows =
        page.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
    let mut endpoints = Endpoints::new();
    for row in rows {
        let mut cells = row.split('|').skip(1).map(str::trim);
        let (names, key) = (cells.next().context("endpoints")?, cells.next().context("key")?);
        ensure!(["yes", "no"].contains(&key), "{row}");
        // A method without a path has the path that follows.
        let mut methods = Vec::new();
        for name in names.split('`').filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase())) {
            let (method, path) = name.split_once(' ').map_or((name, None), |(m, path)| (m, Some(path)));
            methods.push(method.to_lowercase());
            if let Some(path) = path {
                endpoints.extend(methods.drain(..).map(|method| ((method, path.to_owned()), key == "yes")));
            }
        }
        ensure!(methods.is_empty(), "{row}");
    }
    Ok(endpoints)
}

#[tokio::test]
async fn every_operation_is_described() -> Result<()> {
    let stack = Stack::start_with(Options { engine: Engine::None, ..Options::default() }).await?;
    // Without a key: whoever writes a client may not have one yet.
    let response = stack.http.get(format!("{}/openapi.json", stack.url)).send().await?;
    ensure!(response.status() == 200, "{}", response.status());
    let document: Value = response.json().await?;
    assert_eq!(document["openapi"], "3.1.0");
    let mut described = Endpoints::new();
    for (path, methods) in document["paths"].as_object().context("paths")? {
        for (method, operation) in methods.as_object().context("methods")? {
            let is_open = operation["security"].as_array().is_some_and(Vec::is_empty);
            described.insert((method.clone(), path.clone()), !is_open);
            let answers = &operation["responses"];
            assert!(answers["200"].is_object() || path == "/v1/embeddings", "{method} {path}");
            let has_body = method == "post" && !path.ends_with("cancel");
            assert_eq!(operation["requestBody"].is_object(), has_body, "{method} {path}");
        }
    }
    assert_eq!(described, documented()?);
    Ok(())
}
