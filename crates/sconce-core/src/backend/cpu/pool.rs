//! [`ThreadPool`]: persistent threads that share the tasks of one operation.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Persistent threads. [`ThreadPool::run`] splits an operation into tasks, works on them itself, and returns when all
/// are done. Idle threads spin for a few microseconds (the next operation is usually that near), then sleep.
///
/// Each thread begins with a share of its own of neighbouring tasks, which mostly are neighbours in memory, and goes on with
/// what others have left. A thread that wakes late finds no task left and is not waited for, so a busy core delays nobody.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// `state` holds the number of the operation (high 32 bits), whether it is open (bit 31), and how many workers are in
/// it (low 31 bits).
struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// For each thread the next task of its share (low 32 bits) in an operation (high 32 bits).
    next_tasks: Box<[Padded]>,
    panicked: AtomicBool,
    stop: AtomicBool,
    num_sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// Alone in its cache line and the one that is fetched with it.
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    num_tasks: usize,
    number: u64,
}

// SAFETY: `job` is written only by `run`, while no worker is in the operation, and read only by workers that are in
// it; `state` orders the two.
unsafe impl Sync for Shared {}
// SAFETY: the task is Sync, and `run` outlives every use of the pointer.
unsafe impl Send for Shared {}

const OPEN: u64 = 1 << 31;
const COUNT: u64 = OPEN - 1;
const SPINS: usize = 4000;

impl ThreadPool {
    /// A pool of `num_threads` threads, the caller of [`ThreadPool::run`] among them.
    pub fn new(num_threads: usize) -> Self {
        let num_threads = num_threads.max(1);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next_tasks: (0..num_threads).map(|_| Padded::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            num_sleeping: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("sconce-cpu-{i}"));
            builder.spawn(move || shared.work(i)).ok()
        };
        // A system that refuses a thread gets a smaller pool.
        let workers = (1..num_threads).map_while(spawn).collect();
        Self { shared, workers }
    }

    /// Threads that work on an operation.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)`, ..., `task(num_tasks - 1)`, each once, on all threads, and returns when all are done.
    ///
    /// Takes `&mut self`: one operation at a time. Panics if a task did.
    pub fn run(&mut self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if num_tasks <= 1 || self.workers.is_empty() {
            (0..num_tasks).for_each(task);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; `Close` keeps this call from ending, even by a panic, while a worker
        // is in the operation, and the closed operation can no longer be entered.
        let task_ptr: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        let job = Job { task: task_ptr, num_tasks, number };
        // SAFETY: the last operation is closed and empty, so no worker reads the job.
        unsafe { *shared.job.get() = Some(job) };
        // Where the caller's own task panicked too, nobody has taken note of it.
        shared.panicked.store(false, Ordering::Relaxed);
        // SeqCst with the sleeper's own: either it sees the new state, or it is seen sleeping here.
        shared.state.store(number << 32 | OPEN, Ordering::SeqCst);
        if shared.num_sleeping.load(Ordering::SeqCst) > 0 {
            drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        let close = Close(shared);
        shared.run_tasks(job, 0);
        drop(close);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a compute task panicked");
        }
    }
}

/// Closes the operation and waits for the workers in it.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The caller's own task has left tasks that nobody may begin.
            let number = self.0.state.load(Ordering::Relaxed) >> 32;
            self.0
                .next_tasks
                .iter()
                .for_each(|next| next.0.store(number << 32 | u64::from(u32::MAX), Ordering::Relaxed));
        }
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.state.load(Ordering::Acquire) & COUNT != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics; there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Works on the tasks of `thread`'s share, then on those that the next ones have left.
    fn run_tasks(&self, job: Job, thread: usize) {
        let num_threads = self.next_tasks.len();
        for share in (thread..num_threads).chain(0..thread) {
            let start = |share: usize| share * job.num_tasks / num_threads;
            while let Some(idx) = self.take_task(job.number, share, start(share), start(share + 1)) {
                // SAFETY: the operation is open or this thread is counted in it, so `run` has not returned.
                unsafe { (*job.task)(idx) };
            }
        }
    }

    /// The next task of a share, `start..end`, in operation `number`: the first if nobody has had one yet.
    fn take_task(&self, number: u64, share: usize, start: usize, end: usize) -> Option<usize> {
        let next = &self.next_tasks[share].0;
        let mut seen = next.load(Ordering::Relaxed);
        loop {
            let idx = if seen >> 32 == number { (seen & 0xffff_ffff) as usize } else { start };
            if idx >= end {
                return None;
            }
            let taken = number << 32 | (idx as u64 + 1);
            match next.compare_exchange_weak(seen, taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(idx),
                Err(now) => seen = now,
            }
        }
    }

    /// A worker's life.
    fn work(&self, thread: usize) {
        let mut last = 0;
        while let Some(number) = self.enter_next(last) {
            last = number;
            // SAFETY: this thread is counted in the operation, so the job stays as it is.
            let job = unsafe { *self.job.get() }.expect("invariant: an open operation has a job");
            if panic::catch_unwind(AssertUnwindSafe(|| self.run_tasks(job, thread))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for an open operation other than `last` and enters it. `None`: the pool stops.
    fn enter_next(&self, last: u64) -> Option<u64> {
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state >> 32 != last {
                let entered = self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    return Some(state >> 32);
                }
                continue;
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                self.sleep_while(state);
                spins = 0;
            }
        }
    }

    /// Sleeps unless the state is no longer `seen`.
    fn sleep_while(&self, seen: u64) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.num_sleeping.fetch_add(1, Ordering::SeqCst);
        while self.state.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.num_sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A mutable slice that the tasks of one operation write to in disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct SharedSlice<'a, T> {
    ptr: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `range`, whose callers keep the parts disjoint.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// Where `slice[idx]` is, or would be.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn address(&self, idx: usize) -> *const T {
        self.ptr.wrapping_add(idx)
    }

    /// `slice[start..start + len]`, to be written.
    ///
    /// # Safety
    /// No other task may touch the same elements while the result lives.
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "invariant: parts lie within the slice");
        // SAFETY: within the slice; the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for num_threads in [1, 2, 5] {
            let mut pool = ThreadPool::new(num_threads);
            for num_tasks in (0..40).chain([1000]).cycle().take(2000) {
                let counts: Vec<_> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let mut pool = ThreadPool::new(3);
        for _ in 0..20 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            let sum = AtomicUsize::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = ThreadPool::new(3);
        for bad in 0..50 {
            let caught = panic::catch_unwind(AssertUnwindSafe(|| pool.run(50, &|i| assert_ne!(i, bad))));
            assert!(caught.is_err());
        }
        // On all threads, the caller's own too.
        assert!(panic::catch_unwind(AssertUnwindSafe(|| pool.run(50, &|_| panic!("asked to")))).is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
