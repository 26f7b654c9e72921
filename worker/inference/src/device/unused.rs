//! A GPU that this machine has and that is not used, by its device files.

use std::fmt;
use std::fs;
use std::path::Path;

/// What makes wgpu find a GPU.
pub(super) const REMEDY: &str = "install the GPU's Vulkan driver (NVIDIA: libnvidia-gl of the driver's version; \
     AMD and Intel: mesa-vulkan-drivers) and the loader (libvulkan1); in a container, \
     NVIDIA_DRIVER_CAPABILITIES has to name compute, utility and graphics";

/// A GPU that the kernel knows and that does not compute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedGpu {
    /// Its device files.
    pub nodes: String,
    /// Why it is not used.
    pub reason: &'static str,
}

impl UnusedGpu {
    /// The GPUs of this machine, unless it has none.
    pub(super) fn find(reason: &'static str) -> Option<Self> {
        let nodes = nodes(Path::new("/dev"));
        (!nodes.is_empty()).then(|| Self { nodes: nodes.join(", "), reason })
    }

    /// What helps.
    pub(super) fn remedy(&self) -> &'static str {
        match cfg!(feature = "gpu") {
            true => REMEDY,
            false => "build the worker with `--features emberline-worker/gpu`",
        }
    }
}

impl fmt::Display for UnusedGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the GPU ({}) is not used: {}", self.nodes, self.reason)
    }
}

/// The device files of GPUs in `folder`, which is /dev: NVIDIA's own, WSL's, and those of the kernel's drivers.
fn nodes(folder: &Path) -> Vec<String> {
    let is_nvidia = |name: &str| name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let of = |folder: &Path, is_gpu: &dyn Fn(&str) -> bool| {
        let names = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = names.filter(|entry| entry.file_name().to_str().is_some_and(is_gpu));
        names.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    };
    let mut found = of(folder, &|name| is_nvidia(name) || name == "dxg");
    found.extend(of(&folder.join("dri"), &|name| name.starts_with("renderD")));
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_files_of_gpus_are_told_from_others() {
        let devices = tempfile::tempdir().unwrap();
        fs::create_dir(devices.path().join("dri")).unwrap();
        assert_eq!(nodes(devices.path()), Vec::<String>::new());
        for name in ["nvidia0", "nvidiactl", "null", "dri/card0", "dri/renderD128"] {
            fs::write(devices.path().join(name), "").unwrap();
        }
        let expected =
            ["dri/renderD128", "nvidia0"].map(|name| devices.path().join(name).display().to_string());
        assert_eq!(nodes(devices.path()), expected);
        assert_eq!(nodes(Path::new("/nowhere")), Vec::<String>::new());
    }
}
