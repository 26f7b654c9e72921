//! What processes have used, as Linux reports it in /proc.
//!
//! A part of a system is a process group: the process that was started, and those that it has started.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use rustix::process::Pid;

/// A part of a system that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) group: Pid,
}

/// Resident memory of a part, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    /// The largest since [`reset_largest`].
    pub(crate) largest: u64,
}

/// One line of /proc/PID/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    group: i32,
    /// In user and kernel mode, in clock ticks, of the process and of its children that have ended.
    ticks: u64,
    /// The same without its children.
    own_ticks: u64,
}

/// The CPU time that this process has used.
pub(crate) fn own_cpu() -> io::Result<Duration> {
    read_stat("self").map(|stat| ticks(stat.own_ticks))
}

/// The CPU time that each part has used.
pub(crate) fn cpu(parts: &[Part]) -> io::Result<Vec<Duration>> {
    let mut sums = vec![0; parts.len()];
    each_process(|_, stat| {
        for (sum, part) in sums.iter_mut().zip(parts) {
            if stat.group == part.group.as_raw_nonzero().get() {
                *sum += stat.ticks;
            }
        }
    })?;
    Ok(sums.into_iter().map(ticks).collect())
}

/// The memory of each part.
pub(crate) fn memory(parts: &[Part]) -> io::Result<Vec<Memory>> {
    let mut sums = vec![Memory::default(); parts.len()];
    each_process(|id, stat| {
        for (sum, part) in sums.iter_mut().zip(parts) {
            if stat.group == part.group.as_raw_nonzero().get() {
                let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
                sum.now += amount(&status, "VmRSS:").unwrap_or(0);
                sum.largest += amount(&status, "VmHWM:").unwrap_or(0);
            }
        }
    })?;
    Ok(sums)
}

/// Lets the largest memory of each part be what it is now.
pub(crate) fn reset_largest(parts: &[Part]) -> io::Result<()> {
    each_process(|id, stat| {
        if parts.iter().any(|part| stat.group == part.group.as_raw_nonzero().get()) {
            // proc(5): 5 resets the peak resident set size. A process may have ended meanwhile.
            let _ = fs::write(format!("/proc/{id}/clear_refs"), "5");
        }
    })
}

fn each_process(mut take: impl FnMut(&str, Stat)) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        // Processes end at any time.
        if let Ok(stat) = read_stat(id) {
            take(id, stat);
        }
    }
    Ok(())
}

fn read_stat(id: &str) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    Stat::parse(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{id}/stat: {text}")))
}

impl Stat {
    /// Parses a line; the fields are numbered in proc(5).
    fn parse(text: &str) -> Option<Self> {
        // The second field is a name in parentheses and may contain anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number.checked_sub(3)?).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        let own_ticks = number(14)? + number(15)?;
        let ticks = own_ticks + number(16)? + number(17)?;
        Some(Self { group: field(5)?.parse().ok()?, ticks, own_ticks })
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / clock_ticks_per_second() as f64)
}

/// An amount in /proc/PID/status, in bytes.
fn amount(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// The name of the processor.
pub(crate) fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let line = "7 (a) b) S 1 42 42 0 -1 4194560 1 2 0 0 300 20 5 1 20 0 3 0 100 1000 50";
        assert_eq!(Stat::parse(line), Some(Stat { group: 42, ticks: 326, own_ticks: 320 }));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(amount("Name:\ta\nVmHWM:\t    12 kB\n", "VmHWM:"), Some(12 << 10));
        assert_eq!(amount("Name:\ta\n", "VmHWM:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_part_has_used_what_its_processes_have_used() {
        use std::os::unix::process::CommandExt;
        use std::process::Command;

        // The shell starts another process, which is what works.
        let mut shell = Command::new("sh");
        let mut shell = shell.args(["-c", "(while :; do :; done) & wait"]).process_group(0).spawn().unwrap();
        let group = Pid::from_child(&shell);
        let part = Part { name: "busy", group };
        let used = |part: &Part| cpu(std::slice::from_ref(part)).unwrap()[0];
        while used(&part) < Duration::from_millis(50) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(cpu_of_process(&shell) < Duration::from_millis(50), "the other process has used it");
        reset_largest(std::slice::from_ref(&part)).unwrap();
        let held = memory(std::slice::from_ref(&part)).unwrap()[0];
        assert!(held.now > 0 && held.largest >= held.now);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        shell.wait().unwrap();
        assert!(own_cpu().is_ok());
    }

    #[cfg(target_os = "linux")]
    fn cpu_of_process(child: &std::process::Child) -> Duration {
        ticks(read_stat(&child.id().to_string()).unwrap().own_ticks)
    }
}
