//! This process's memory and this machine's processor, as the system reports them.

use std::fs;

/// Bytes of this process in memory; `None` where the system doesn't tell (anywhere but on Linux).
pub fn resident() -> Option<u64> {
    field("VmRSS:")
}

/// The largest number of resident bytes so far.
pub(super) fn peak() -> Option<u64> {
    field("VmHWM:")
}

/// Resets [`peak`], where the system allows it; proc(5), clear_refs.
pub(super) fn reset_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn field(name: &str) -> Option<u64> {
    bytes(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// A field of /proc/self/status, which are in kibibytes; proc_pid_status(5).
fn bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The processor's name, or its architecture where the system has no name for it.
pub(super) fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|rest| rest.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let status = "Name:\tx\nVmHWM:\t     200 kB\nVmRSS:\t     100 kB\n";
        assert_eq!(bytes(status, "VmRSS:"), Some(102_400));
        assert_eq!(bytes(status, "VmHWM:"), Some(204_800));
        assert_eq!(bytes(status, "VmSwap:"), None);
        assert_eq!(bytes("VmRSS: many\n", "VmRSS:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory() {
        assert!(resident().unwrap() > 0);
        assert!(peak().unwrap() >= resident().unwrap() / 2);
    }
}
