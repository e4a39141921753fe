//! How many threads compute well here.

use std::thread;

/// One thread a physical core that this process may use. Hyper-threads share a core's arithmetic units, so a second
/// thread a core only adds to the barrier.
pub(super) fn default_num_threads() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    num_physical_cores().map_or(allowed, |cores| cores.clamp(1, allowed))
}

#[cfg(target_os = "linux")]
fn num_physical_cores() -> Option<usize> {
    let mut cores = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let name = entry.file_name();
        let is_cpu = name.to_str().and_then(|n| n.strip_prefix("cpu")).is_some_and(|n| n.parse::<u32>().is_ok());
        if is_cpu && let Ok(siblings) = std::fs::read_to_string(entry.path().join("topology/thread_siblings_list")) {
            cores.insert(siblings);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Of Apple's processors the fast ones alone: all threads wait for the slowest in each step.
#[cfg(not(target_os = "linux"))]
fn num_physical_cores() -> Option<usize> {
    let fast_cores = || {
        let answer = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.perflevel0.physicalcpu"]).output();
        String::from_utf8(answer.ok()?.stdout).ok()?.trim().parse().ok()
    };
    cfg!(target_vendor = "apple").then(fast_cores).flatten().or_else(sysinfo::System::physical_core_count)
}
