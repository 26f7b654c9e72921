//! The catalogue: where models and programs can be downloaded, and the checksum of each.

use std::fmt;
use std::path::Path;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

const BUILT_IN: &str = include_str!("../../deploy/catalogue.toml");

/// All models and programs that can be fetched.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalogue {
    #[serde(rename = "artifact")]
    artifacts: Vec<Artifact>,
}

/// A model or a program.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Artifact {
    pub(crate) name: String,
    pub(crate) kind: ArtifactKind,
    pub(crate) license: String,
    #[serde(rename = "source")]
    pub(crate) sources: Vec<Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ArtifactKind {
    Model,
    Program,
}

/// One place to fetch an artifact from.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Source {
    /// A member of a Python wheel that pip can locate.
    Pip(PipSource),
    /// A file of a Hugging Face repository.
    Hub(HubSource),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PipSource {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) platform: Option<String>,
    /// The wheel's file name.
    pub(crate) wheel: String,
    pub(crate) wheel_digest: FileDigest,
    /// The artifact's path in the wheel.
    pub(crate) member: String,
    /// The artifact's own digest.
    pub(crate) digest: FileDigest,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HubSource {
    pub(crate) repo: String,
    pub(crate) path: String,
    pub(crate) digest: FileDigest,
}

/// Size and checksum that a file must have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileDigest {
    /// In bytes.
    pub(crate) size: u64,
    /// In lower-case hexadecimal.
    pub(crate) sha256: String,
}

/// Why a catalogue can't be used, or what it lacks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogueError {
    #[error("catalogue {0}: {1}")]
    Read(String, std::io::Error),
    #[error("catalogue {0}: {1}")]
    Syntax(String, Box<toml::de::Error>),
    #[error("catalogue {file}: '{name}' {wrong}")]
    Entry { file: String, name: String, wrong: &'static str },
    #[error("'{name}' is not in the catalogue; it has: {available}. A path to a .gguf file works too")]
    Unknown { name: String, available: String },
}

impl Catalogue {
    /// The catalogue in `file`, or the one this program was built with.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, CatalogueError> {
        let Some(path) = file else { return Self::parse(BUILT_IN, "(built in)") };
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| CatalogueError::Read(shown.clone(), e))?;
        Self::parse(&text, &shown)
    }

    fn parse(text: &str, file: &str) -> Result<Self, CatalogueError> {
        let catalogue: Self =
            toml::from_str(text).map_err(|e| CatalogueError::Syntax(file.to_owned(), Box::new(e)))?;
        for artifact in &catalogue.artifacts {
            if let Some(wrong) = artifact.invalid_reason() {
                let (file, name) = (file.to_owned(), artifact.name.clone());
                return Err(CatalogueError::Entry { file, name, wrong });
            }
        }
        Ok(catalogue)
    }

    /// The artifact of this kind and name.
    pub(crate) fn find(&self, kind: ArtifactKind, name: &str) -> Result<&Artifact, CatalogueError> {
        self.artifacts.iter().find(|a| a.kind == kind && a.name == name).ok_or_else(|| {
            let names = self.artifacts.iter().filter(|a| a.kind == kind).map(|a| a.name.as_str());
            CatalogueError::Unknown { name: name.to_owned(), available: names.collect::<Vec<_>>().join(", ") }
        })
    }
}

impl Artifact {
    /// The file's name in the cache. It can't leave its folder: names are checked when the catalogue is read.
    pub(crate) fn file_name(&self) -> String {
        match self.kind {
            ArtifactKind::Model => format!("{}.gguf", self.name),
            ArtifactKind::Program => self.name.clone(),
        }
    }

    /// The sources for `platform`, in order.
    pub(crate) fn sources_for<'a>(&'a self, platform: &'a str) -> impl Iterator<Item = &'a Source> {
        self.sources.iter().filter(move |source| match source {
            Source::Pip(pip) => pip.platform.as_deref().is_none_or(|p| p == platform),
            Source::Hub(_) => true,
        })
    }

    /// What is wrong with this entry, as the end of a sentence.
    fn invalid_reason(&self) -> Option<&'static str> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(plain) {
            return Some("has a name with characters other than letters, digits, '-', '_' and '.'");
        }
        if self.sources.iter().flat_map(Source::all_digests).any(|digest| !digest.is_sha256()) {
            return Some("has a sha256 that is not 64 lower-case hexadecimal digits");
        }
        self.sources.is_empty().then_some("has no source")
    }
}

impl Source {
    /// The artifact's digest when it comes from this source.
    pub(crate) fn digest(&self) -> &FileDigest {
        match self {
            Self::Pip(pip) => &pip.digest,
            Self::Hub(hub) => &hub.digest,
        }
    }

    fn all_digests(&self) -> Vec<&FileDigest> {
        match self {
            Self::Pip(pip) => vec![&pip.wheel_digest, &pip.digest],
            Self::Hub(hub) => vec![&hub.digest],
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pip(pip) => write!(f, "Python package {} {}", pip.package, pip.version),
            Self::Hub(hub) => write!(f, "Hugging Face repository {}", hub.repo),
        }
    }
}

impl FileDigest {
    fn is_sha256(&self) -> bool {
        HEXLOWER.decode(self.sha256.as_bytes()).is_ok_and(|bytes| bytes.len() == 32)
    }

    /// Whether the file at `path` has this size and checksum.
    pub(crate) fn matches(&self, path: &Path) -> std::io::Result<bool> {
        if std::fs::metadata(path)?.len() != self.size {
            return Ok(false);
        }
        Ok(sha256_of(path)? == self.sha256)
    }
}

/// A file's SHA-256 in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut hasher = Hashing(Sha256::new());
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(HEXLOWER.encode(&hasher.0.finalize()))
}

/// Lets `io::copy` write into the hasher; sha2 itself offers that only behind a feature.
struct Hashing(Sha256);

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// This machine's platform as the catalogue spells it: `linux-x86_64`.
pub(crate) fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_has_the_default_model_and_a_server_for_every_platform() {
        let catalogue = Catalogue::load(None).unwrap();
        let model = catalogue.find(ArtifactKind::Model, "smollm2-135m-instruct").unwrap();
        assert_eq!(model.sources_for("any-where").count(), 2);
        assert_eq!(model.file_name(), "smollm2-135m-instruct.gguf");
        let server = catalogue.find(ArtifactKind::Program, "nats-server").unwrap();
        for platform in ["linux-x86_64", "linux-aarch64", "macos-aarch64", "macos-x86_64"] {
            assert_eq!(server.sources_for(platform).count(), 1, "{platform}");
        }
    }

    #[test]
    fn an_unknown_model_is_answered_with_those_that_are_known() {
        let error = Catalogue::load(None).unwrap().find(ArtifactKind::Model, "gpt-17").unwrap_err();
        assert!(error.to_string().contains("it has: smollm2-135m-instruct."), "{error}");
    }

    #[test]
    fn entries_that_could_leave_the_cache_or_skip_the_check_are_refused() {
        let entry = |name: &str, sha256: &str| {
            format!(
                "[[artifact]]\nname = \"{name}\"\nkind = \"model\"\nlicense = \"MIT\"\n[[artifact.source]]\n\
                 kind = \"hub\"\nrepo = \"a/b\"\npath = \"c\"\ndigest = {{ size = 1, sha256 = \"{sha256}\" }}\n"
            )
        };
        let good = "0".repeat(64);
        assert!(Catalogue::parse(&entry("a-b_c.d", &good), "test").is_ok());
        for (name, sha256) in
            [("../x", good.as_str()), (".x", &good), ("", &good), ("x", "00"), ("x", &good[1..])]
        {
            let error = Catalogue::parse(&entry(name, sha256), "test").unwrap_err();
            assert!(matches!(error, CatalogueError::Entry { .. }), "{name} {sha256}: {error}");
        }
    }

    #[test]
    fn a_digest_is_of_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = |size, sha256: &str| FileDigest { size, sha256: sha256.to_owned() };
        assert!(digest(3, sha256).matches(&path).unwrap());
        assert!(!digest(4, sha256).matches(&path).unwrap());
        assert!(!digest(3, &sha256.replace('b', "c")).matches(&path).unwrap());
    }
}
