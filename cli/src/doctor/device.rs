//! The GPU of this machine, and what a worker needs to compute on it: the driver and the Vulkan loader.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::report::Check;
use crate::programs::on_path;

const NAME: &str = "gpu";
/// Where the loader looks for drivers, besides what its variables name.
const DRIVER_FOLDERS: [&str; 4] = [
    "/etc/vulkan/icd.d",
    "/usr/share/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
    "/usr/local/etc/vulkan/icd.d",
];
const DRIVER_VARIABLES: [&str; 2] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];
/// Drivers that compute on the CPU.
const SOFTWARE: [&str; 4] = ["lvp_icd", "lavapipe", "swrast", "swiftshader"];

/// What nvidia-smi says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NvidiaSmi {
    Absent,
    /// Names and driver versions, a line each.
    Devices(String),
    Failed(String),
}

/// What was found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    nvidia: NvidiaSmi,
    /// GPUs' device files that this process sees.
    nodes: Vec<String>,
    /// The files that describe Vulkan drivers.
    drivers: Vec<String>,
    has_loader: bool,
}

/// Looks at this machine.
pub(super) fn examine() -> Check {
    // Metal is part of the system.
    if cfg!(target_os = "macos") {
        return Check::ok(NAME, "the system's own, by Metal");
    }
    judge(&Machine {
        nvidia: nvidia_smi(),
        nodes: nodes(Path::new("/dev")),
        drivers: drivers(),
        has_loader: has_loader(),
    })
}

fn nvidia_smi() -> NvidiaSmi {
    let Some(program) = on_path("nvidia-smi") else { return NvidiaSmi::Absent };
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    match Command::new(program).args(query).output() {
        Ok(output) if output.status.success() => {
            NvidiaSmi::Devices(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            NvidiaSmi::Failed(
                said.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason").to_owned(),
            )
        }
        Err(error) => NvidiaSmi::Failed(error.to_string()),
    }
}

fn nodes(devices: &Path) -> Vec<String> {
    let names = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let is_nvidia =
        |name: &String| name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let mut found: Vec<String> =
        names(devices.join("dri")).into_iter().filter(|name| name.starts_with("renderD")).collect();
    found.extend(names(devices.to_owned()).into_iter().filter(|name| is_nvidia(name) || name == "dxg"));
    found.sort_unstable();
    found
}

fn drivers() -> Vec<String> {
    let named = DRIVER_VARIABLES.iter().find_map(std::env::var_os);
    let files: Vec<PathBuf> = match named {
        Some(named) => std::env::split_paths(&named).collect(),
        None => {
            let entries = DRIVER_FOLDERS.iter().filter_map(|folder| fs::read_dir(folder).ok());
            entries.flatten().flatten().map(|entry| entry.path()).collect()
        }
    };
    let name = |file: &PathBuf| {
        let is_driver = file.is_file() && file.extension().is_some_and(|extension| extension == "json");
        Some(file.file_stem()?.to_string_lossy().into_owned()).filter(|_| is_driver)
    };
    let mut names: Vec<String> = files.iter().filter_map(name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether the Vulkan loader is where the system looks for libraries.
fn has_loader() -> bool {
    const LIBRARY: &str = "libvulkan.so.1";
    let listed = |program: &str| {
        let output = Command::new(program).arg("-p").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(LIBRARY))
    };
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(LIBRARY).is_file())
        || listed("ldconfig")
        || listed("/sbin/ldconfig")
}

fn judge(machine: &Machine) -> Check {
    let hardware: Vec<&str> = machine
        .drivers
        .iter()
        .map(String::as_str)
        .filter(|driver| !SOFTWARE.iter().any(|software| driver.contains(software)))
        .collect();
    let container = "in a container, NVIDIA_DRIVER_CAPABILITIES has to name compute, utility and graphics";
    let name = match &machine.nvidia {
        NvidiaSmi::Failed(reason) => {
            return Check::fault(
                NAME,
                format!("the NVIDIA driver does not work: {reason}"),
                "after an upgrade of the driver, restart the machine; in a container, give it the host's driver (NVIDIA Container Toolkit)",
            );
        }
        NvidiaSmi::Devices(names) if !names.is_empty() => {
            if !hardware.iter().any(|driver| driver.contains("nvidia")) {
                return Check::fault(
                    NAME,
                    format!("{names}: there is no Vulkan driver for it (nvidia_icd.json)"),
                    format!("install the driver's Vulkan part (libnvidia-gl); {container}"),
                );
            }
            names.replace('\n', "; ")
        }
        NvidiaSmi::Devices(_) | NvidiaSmi::Absent if machine.nodes.is_empty() => {
            return Check::ok(NAME, "there is none; a worker on this machine computes on the CPU");
        }
        NvidiaSmi::Devices(_) | NvidiaSmi::Absent => machine.nodes.join(", "),
    };
    if hardware.is_empty() {
        return Check::fault(
            NAME,
            format!("{name}: there is no Vulkan driver for it"),
            format!("install it (Debian and Ubuntu: mesa-vulkan-drivers for AMD and Intel); {container}"),
        );
    }
    if !machine.has_loader {
        return Check::fault(
            NAME,
            format!("{name}: the Vulkan loader is missing (libvulkan.so.1)"),
            "install it (Debian and Ubuntu: libvulkan1)",
        );
    }
    Check::ok(NAME, format!("{name}; Vulkan drivers: {}", hardware.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            nvidia: NvidiaSmi::Devices("NVIDIA H200, 570.1".into()),
            nodes: vec!["nvidia0".into()],
            drivers: vec!["lvp_icd.x86_64".into(), "nvidia_icd".into()],
            has_loader: true,
        }
    }

    #[test]
    fn a_gpu_that_works_and_none_are_both_fine() {
        let check = judge(&machine());
        assert_eq!(check.finding, "NVIDIA H200, 570.1; Vulkan drivers: nvidia_icd");
        let none = Machine { nvidia: NvidiaSmi::Absent, nodes: vec![], drivers: vec![], has_loader: false };
        assert!(judge(&none).remedy.is_none());
        let radeon = Machine { nodes: vec!["renderD128".into()], drivers: vec!["radeon_icd".into()], ..none };
        assert!(judge(&Machine { has_loader: true, ..radeon }).remedy.is_none());
    }

    #[test]
    fn what_a_gpu_lacks_is_found() {
        let software = vec!["lvp_icd.x86_64".to_owned(), "vk_swiftshader_icd".to_owned()];
        let failed = NvidiaSmi::Failed("Driver/library version mismatch".into());
        for (machine, words) in [
            (Machine { nvidia: failed, ..machine() }, "version mismatch"),
            (Machine { drivers: software.clone(), ..machine() }, "nvidia_icd.json"),
            (Machine { nvidia: NvidiaSmi::Absent, drivers: software, ..machine() }, "no Vulkan driver"),
            (Machine { has_loader: false, ..machine() }, "libvulkan.so.1"),
        ] {
            let check = judge(&machine);
            assert!(check.is_fault() && check.finding.contains(words), "{check:?}");
        }
    }

    #[test]
    fn device_files_of_gpus_are_told_from_others() {
        let devices = tempfile::tempdir().unwrap();
        fs::create_dir(devices.path().join("dri")).unwrap();
        for name in ["nvidia0", "nvidiactl", "null", "dri/card0", "dri/renderD128"] {
            fs::write(devices.path().join(name), "").unwrap();
        }
        assert_eq!(nodes(devices.path()), ["nvidia0", "renderD128"]);
    }
}
