//! How much memory is free, and what has been freed given back.

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

/// Gives the pages of freed memory back to the system. Loading frees much in small pieces, such as the strings of a GGUF's
/// vocabulary, and glibc keeps them for the process; nothing that is allocated later is of their size.
pub(crate) fn release_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        malloc_trim(0);
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
    }

    #[test]
    fn freed_pieces_leave_the_process() {
        // More than what other tests take and free in the meantime.
        const PIECES: usize = 256 << 10;
        let mut pieces: Vec<Box<[u8; 1024]>> = (0..PIECES).map(|_| Box::new([1; 1024])).collect();
        // What is at the top of the heap keeps all below it.
        let last = pieces.pop();
        drop(pieces);
        let before = resident_kib();
        release_freed();
        let after = resident_kib();
        assert!(before >= after + PIECES / 2, "{before} KiB before, {after} KiB after");
        drop(last);
    }
}
