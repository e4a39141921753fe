//! How much memory is free.

/// Bytes that new allocations can use without pushing other programs out, where the system tells it: what the machine
/// has available, and what this process's control group still allows.
pub(super) fn free_memory() -> Option<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024;
    Some(cgroup_free().map_or(available, |free| free.min(available)))
}

/// What a version 2 control group still allows, if there is a limit.
fn cgroup_free() -> Option<usize> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let limit = read("memory.max")?.trim().parse::<usize>().ok()?;
    let current = read("memory.current")?.trim().parse::<usize>().ok()?;
    Some(limit.saturating_sub(current))
}
