//! Where a model comes from: this machine, or the Hugging Face hub, from which it is fetched.

use std::convert::Infallible;
use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};

use super::CheckpointError;
use super::hf::CONFIG_FILE;
use super::safetensors::{self, SafetensorsFolder};

/// How a hub id begins.
const HUB: &str = "hf:";
const DEFAULT_REVISION: &str = "main";
/// What is fetched besides the weights, where there is such a file.
const SMALL_FILES: [&str; 7] = [
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
const RETRIES: usize = 3;

/// Where a model comes from.
///
/// Written as the path of a GGUF file or of a folder, or as `hf:organisation/name`, where
/// `@revision` may follow, or `/file.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// On this machine.
    Path(PathBuf),
    /// On the hub.
    Hub {
        /// `organisation/name`.
        repository: String,
        /// A branch, tag or commit.
        revision: String,
        /// The GGUF file, where there are several.
        file: Option<String>,
    },
}

impl FromStr for ModelSource {
    type Err = Infallible;

    /// Never fails: an invalid hub id is found when the model is fetched.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let Some(id) = text.strip_prefix(HUB) else { return Ok(Self::Path(PathBuf::from(text))) };
        let (id, revision) = id.split_once('@').unwrap_or((id, DEFAULT_REVISION));
        let end_of_name = id.match_indices('/').nth(1).map(|(at, _)| at);
        let (repository, file) = match end_of_name {
            Some(at) => (&id[..at], Some(id[at + 1..].to_owned())),
            None => (id, None),
        };
        Ok(Self::Hub { repository: repository.to_owned(), revision: revision.to_owned(), file })
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Hub { repository, revision, file } => {
                write!(f, "{HUB}{repository}")?;
                if let Some(file) = file {
                    write!(f, "/{file}")?;
                }
                if revision == DEFAULT_REVISION { Ok(()) } else { write!(f, "@{revision}") }
            }
        }
    }
}

impl ModelSource {
    /// The model's file or folder on this machine, fetched from the hub into its usual cache if
    /// need be. Blocks for as long as that takes.
    pub fn fetch(&self) -> Result<PathBuf, CheckpointError> {
        match self {
            Self::Path(path) => Ok(path.clone()),
            Self::Hub { repository, revision, file } => {
                let mut builder = ApiBuilder::from_env();
                if let Ok(token) = std::env::var("HF_TOKEN") {
                    builder = builder.with_token(Some(token).filter(|token| !token.is_empty()));
                }
                let hub = Hub::new(builder, Cache::from_env(), repository, revision)?;
                hub.fetch(file.as_deref())
            }
        }
    }
}

/// A repository of the hub, and the cache of what was fetched from it.
struct Hub {
    api: Api,
    cache: Cache,
    repository: String,
    revision: String,
}

impl Hub {
    fn new(
        builder: ApiBuilder,
        cache: Cache,
        repository: &str,
        revision: &str,
    ) -> Result<Self, CheckpointError> {
        let builder = builder.with_retries(RETRIES).with_progress(std::io::stderr().is_terminal());
        let (repository, revision) = (repository.to_owned(), revision.to_owned());
        match builder.build() {
            Ok(api) => Ok(Self { api, cache, repository, revision }),
            Err(error) => Err(CheckpointError::Hub { repository, reason: error.to_string() }),
        }
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repository.clone(), RepoType::Model, revision.to_owned())
    }

    fn failed(&self, reason: impl fmt::Display) -> CheckpointError {
        CheckpointError::Hub { repository: self.repository.clone(), reason: reason.to_string() }
    }

    fn fetch(&self, file: Option<&str>) -> Result<PathBuf, CheckpointError> {
        let named = self.cache.repo(self.repo(&self.revision));
        let info = match self.api.repo(self.repo(&self.revision)).info() {
            Ok(info) => info,
            // Without the hub, use what was fetched last.
            Err(error) => {
                let cached = named.get(file.unwrap_or(CONFIG_FILE)).ok_or_else(|| self.failed(&error))?;
                tracing::warn!(repository = %self.repository, %error, "can't reach the hub; using the cache");
                let folder = cached.parent().map(Path::to_owned);
                return Ok(if file.is_some() { cached } else { folder.unwrap_or(cached) });
            }
        };
        let commit = Commit { hub: self, sha: &info.sha };
        let files: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let fetched = self.fetch_files(&commit, &files, file)?;
        named.create_ref(&info.sha).map_err(|error| self.failed(error))?;
        Ok(fetched)
    }

    /// The one GGUF file that is wanted, or the folder of what makes up a model.
    fn fetch_files(
        &self,
        commit: &Commit<'_>,
        files: &[&str],
        file: Option<&str>,
    ) -> Result<PathBuf, CheckpointError> {
        if let Some(file) = file {
            return commit.get(file);
        }
        let weights: Vec<String> = if files.contains(&safetensors::INDEX) {
            SafetensorsFolder::files(&commit.folder_of(safetensors::INDEX)?)?
        } else if files.contains(&safetensors::SINGLE) {
            vec![safetensors::SINGLE.to_owned()]
        } else {
            let found: Vec<&str> = files.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
            return match found.as_slice() {
                [only] => commit.get(only),
                [] => Err(self.failed("it has neither safetensors nor GGUF files")),
                several => {
                    let names = several.join(", ");
                    Err(self
                        .failed(format!("it has several GGUF files: add / and the name of one of {names}")))
                }
            };
        };
        for name in SMALL_FILES.into_iter().filter(|name| files.contains(name)) {
            commit.get(name)?;
        }
        for name in &weights {
            commit.get(name)?;
        }
        commit.folder_of(CONFIG_FILE)
    }
}

/// A commit of a repository: its files belong together.
struct Commit<'a> {
    hub: &'a Hub,
    sha: &'a str,
}

impl Commit<'_> {
    /// A file in the cache, fetched if it is not there.
    fn get(&self, name: &str) -> Result<PathBuf, CheckpointError> {
        let repo = self.hub.repo(self.sha);
        let cached = self.hub.cache.repo(repo.clone()).pointer_path(self.sha).join(name);
        if cached.exists() {
            return Ok(cached);
        }
        self.hub.api.repo(repo).download(name).map_err(|error| self.hub.failed(format!("{name}: {error}")))
    }

    fn folder_of(&self, name: &str) -> Result<PathBuf, CheckpointError> {
        let path = self.get(name)?;
        Ok(path.parent().map(Path::to_owned).unwrap_or(path))
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
