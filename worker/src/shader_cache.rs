//! Keeps what graphics drivers have compiled between starts, in the cache folder.
//!
//! wgpu has the driver compile each kernel at each start. The drivers keep what they compile, but where they do so by
//! default is often not kept itself, as in a container.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;

/// The variables by which drivers are told their folder, and its name.
const FOLDERS: [(&str, &str); 3] = [
    ("MESA_SHADER_CACHE_DIR", "mesa"),
    ("__GL_SHADER_DISK_CACHE_PATH", "nvidia"),
    ("CUDA_CACHE_PATH", "cuda"),
];

/// Tells the drivers where to keep what they compile, unless the operator has told them.
///
/// # Errors
/// Fails if a folder can't be created; the drivers then compile at each start.
///
/// # Safety
/// No other thread may run yet, since it sets environment variables.
#[allow(unsafe_code)]
pub unsafe fn keep() -> io::Result<()> {
    for (name, folder) in variables(|name| std::env::var_os(name).filter(|value| !value.is_empty())) {
        fs::create_dir_all(&folder)?;
        // SAFETY: the caller says that this is the only thread.
        unsafe { std::env::set_var(name, folder) };
    }
    Ok(())
}

/// The variables to set, given those that are.
fn variables(env: impl Fn(&str) -> Option<OsString>) -> Vec<(&'static str, PathBuf)> {
    // The cache folder as `emberline` finds it.
    let root = env("EMBERLINE_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env("XDG_CACHE_HOME")?).join("emberline")))
        .or_else(|| Some(PathBuf::from(env("HOME")?).join(".cache/emberline")));
    let Some(root) = root else { return Vec::new() };
    let unset = FOLDERS.into_iter().filter(|(name, _)| env(name).is_none());
    unset.map(|(name, folder)| (name, root.join("shaders").join(folder))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(variables_set: &[(&str, &str)]) -> Vec<(&'static str, PathBuf)> {
        variables(|name| variables_set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn drivers_are_told_the_cache_folder_unless_they_were_told_another() {
        let all = set(&[("EMBERLINE_CACHE", "/e"), ("HOME", "/h")]);
        assert_eq!(all[0], ("MESA_SHADER_CACHE_DIR", "/e/shaders/mesa".into()));
        assert_eq!(all.len(), FOLDERS.len());
        let others = set(&[("HOME", "/h"), ("MESA_SHADER_CACHE_DIR", "/m")]);
        assert_eq!(others[0], ("__GL_SHADER_DISK_CACHE_PATH", "/h/.cache/emberline/shaders/nvidia".into()));
        assert_eq!(others.len(), FOLDERS.len() - 1);
        assert_eq!(set(&[]), []);
    }
}
