//! Whether a model fits into memory, as far as that can be known before it is loaded.

use std::path::Path;

use emberline_protocol::bytes::Bytes;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::network::Quantize;

/// What loading a model would take, and what is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs about {needed} of memory ({weights} of weights and {cache} for keys and values), but {available} \
     is available; remove another model, lower cache_memory, raise max_memory, or choose a smaller or quantised model"
)]
pub struct NotEnough {
    /// Weights and cache.
    pub needed: Bytes,
    /// As large as their files, or as what they are quantised to.
    pub weights: Bytes,
    /// For keys and values, if it is set.
    pub cache: Bytes,
    /// What the device has left for it.
    pub available: Bytes,
}

/// Refuses the model at `path` if it can't fit into `room` with its `cache`; one of unknown size passes.
pub fn check(
    path: &Path,
    quantize: Option<Quantize>,
    cache: Option<Bytes>,
    room: Option<u64>,
) -> Result<(), NotEnough> {
    match (weights(path, quantize), room) {
        (Some(weights), Some(available)) => compare(weights, cache, available),
        _ => Ok(()),
    }
}

fn compare(weights: u64, cache: Option<Bytes>, available: u64) -> Result<(), NotEnough> {
    let cache = cache.unwrap_or(Bytes(0));
    let needed = weights.saturating_add(cache.0);
    if needed <= available {
        return Ok(());
    }
    Err(NotEnough { needed: Bytes(needed), weights: Bytes(weights), cache, available: Bytes(available) })
}

/// Bytes that the weights at `path` will take; `None` if there are none.
fn weights(path: &Path, quantize: Option<Quantize>) -> Option<u64> {
    let metadata = path.metadata().ok()?;
    if !metadata.is_dir() {
        // Quantising such a file can only make it smaller.
        return Some(metadata.len());
    }
    let stored = |begins: &str, ends: &str| -> Option<u64> {
        let files = path.read_dir().ok()?.flatten().filter(|file| {
            let name = file.file_name();
            let name = name.to_string_lossy();
            name.starts_with(begins) && name.ends_with(ends)
        });
        // Files in the hub's cache are links.
        Some(files.filter_map(|file| file.path().metadata().ok()).map(|file| file.len()).sum())
    };
    // Repositories often contain the same weights in other files, too.
    let safetensors = stored("model", ".safetensors")?;
    if safetensors == 0 {
        return stored("", ".gguf");
    }
    // Stored with at least 16 bits each; quantised in blocks of 32 with a scale of 16 bits.
    Some(match quantize {
        None => safetensors,
        Some(Quantize::Q8) => safetensors / 64 * 34,
        Some(Quantize::Q4) => safetensors / 64 * 18,
    })
}

/// Bytes that this process may still take, by the machine and by its control group; `None` if the
/// system does not say.
pub fn available() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let machine = Some(system.available_memory()).filter(|&bytes| bytes > 0)?;
    let pid = Pid::from_u32(std::process::id());
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing().without_tasks(),
    );
    let group = system.process(pid).and_then(|process| process.cgroup_limits());
    // Cached files count as used there, but are dropped when memory is needed.
    let group = group.map(|group| group.total_memory.saturating_sub(group.rss));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// Returns freed memory to the system.
///
/// glibc keeps it otherwise, so that the next model would seem not to fit.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    // SAFETY: it touches nothing but the allocator's free memory, and takes the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_is_available_is_known_here_and_no_more_than_a_machine_has() {
        let bytes = available().unwrap();
        assert!(bytes > 1 << 20 && bytes < 1 << 50, "{bytes}");
    }

    #[test]
    fn weights_are_as_large_as_their_files_or_as_what_they_are_turned_into() {
        let folder = tempfile::tempdir().unwrap();
        let size =
            |name: &str, bytes| File::create(folder.path().join(name)).unwrap().set_len(bytes).unwrap();
        size("only.gguf", 5000);
        assert_eq!(weights(folder.path(), Some(Quantize::Q4)), Some(5000));
        size("model-1-of-2.safetensors", 64_000);
        size("model-2-of-2.safetensors", 64_000);
        size("consolidated.safetensors", 1 << 30);
        assert_eq!(weights(folder.path(), None), Some(128_000));
        assert_eq!(weights(folder.path(), Some(Quantize::Q8)), Some(68_000));
        assert_eq!(weights(folder.path(), Some(Quantize::Q4)), Some(36_000));
        assert_eq!(weights(&folder.path().join("only.gguf"), Some(Quantize::Q4)), Some(5000));
        assert_eq!(weights(&folder.path().join("none"), None), None);
    }

    #[test]
    fn a_model_with_its_cache_must_fit() {
        assert_eq!(compare(100, None, 100), Ok(()));
        let error = compare(3 << 30, Some(Bytes(1 << 30)), 2 << 30).unwrap_err().to_string();
        for part in ["about 4.0 GiB", "3.0 GiB of weights", "1.0 GiB for keys", "2.0 GiB is available"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(compare(u64::MAX, Some(Bytes(1)), u64::MAX - 1).is_err());
    }
}
