//! What a process holds, as Linux tells it; elsewhere nothing is known.

use std::fs;

/// Resident memory in MiB.
pub fn resident_mib(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? >> 10)
}

/// Open file descriptors.
pub fn open_files(id: u32) -> Option<u64> {
    fs::read_dir(format!("/proc/{id}/fd")).ok().map(|files| files.count() as u64)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_something() {
        let id = std::process::id();
        let before = open_files(id).unwrap();
        let held: Vec<_> = (0..20).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        assert!(open_files(id).unwrap() >= before + 10, "{} files", held.len());
        assert!(resident_mib(id).unwrap() > 0);
        assert_eq!(resident_mib(u32::MAX), None);
    }
}
