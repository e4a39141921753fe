//! How much memory is free, what of it has been promised, and what has been freed given back.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of all [`Promise`]s.
static PROMISED: AtomicUsize = AtomicUsize::new(0);

/// Memory that will be written some time: until then the system calls it free.
#[derive(Debug)]
pub(super) struct Promise(usize);

impl Promise {
    pub(super) fn new(bytes: usize) -> Self {
        PROMISED.fetch_add(bytes, Ordering::Relaxed);
        Self(bytes)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        PROMISED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Bytes that are free and that nothing in this process has been promised. What has been written of a promise counts twice, so that
/// it is rather too little than too much.
pub(super) fn unpromised_memory() -> Option<usize> {
    free_memory().map(|free| free.saturating_sub(PROMISED.load(Ordering::Relaxed)))
}

/// Bytes that new allocations can use without pushing other programs out, where the system tells it: what the machine
/// has available, and what this process's control group still allows.
#[cfg(not(target_os = "linux"))]
pub(super) fn free_memory() -> Option<usize> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    usize::try_from(system.available_memory()).ok().filter(|&bytes| bytes > 0)
}

/// Bytes that new allocations can use without pushing other programs out, where the system tells it: what the machine
/// has available, and what this process's control group still allows.
#[cfg(target_os = "linux")]
pub(super) fn free_memory() -> Option<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024;
    Some(cgroup_free().map_or(available, |free| free.min(available)))
}

/// What a version 2 control group still allows, if there is a limit.
#[cfg(target_os = "linux")]
fn cgroup_free() -> Option<usize> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    free_of_limit(&read("memory.max")?, &read("memory.current")?, &read("memory.stat").unwrap_or_default())
}

/// The same, of what the group's files say. Pages of files that have been read count as used, and are given up for new allocations.
#[cfg(target_os = "linux")]
fn free_of_limit(max: &str, current: &str, stat: &str) -> Option<usize> {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let of_files = |name: &str| stat.lines().find_map(|line| number(line.strip_prefix(name)?.strip_prefix(' ')?));
    let files = ["inactive_file", "active_file"].into_iter().filter_map(of_files).sum();
    Some(number(max)?.saturating_sub(number(current)?.saturating_sub(files)))
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
    fn pages_of_files_are_free() {
        let stat = "anon 300\nfile 650\ninactive_file 400\nactive_file 250\nactive_file_other 9\n";
        assert_eq!(free_of_limit("1000\n", "960\n", stat), Some(690));
        assert_eq!(free_of_limit("1000\n", "960\n", ""), Some(40));
        assert_eq!(free_of_limit("1000", "1200", ""), Some(0));
        assert_eq!(free_of_limit("max\n", "960\n", stat), None);
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
