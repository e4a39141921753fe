//! [`Staging`]: pinned memory of the host, by way of which everything comes to the device and back.
//!
//! A copy out of pinned memory runs beside the host. So an upload is copied into a slot, sent from there, and the caller's
//! memory is free; the next upload fills another slot meanwhile. A slot is filled again once what it held has been sent. A
//! step's answers have slots of their own, [`PinnedMailbox`], in which they are waited for alone.

use std::sync::Arc;

use cudarc::driver::sys;

use super::super::device::{DevicePtr, Mailbox};
use super::context::Context;
use crate::error::Result;

/// Bytes of a slot for a step's inputs, and how many there are.
const SMALL: (usize, usize) = (256 << 10, 8);
/// The same for weights.
const LARGE: (usize, usize) = (32 << 20, 2);
/// Bytes of the slot for results.
const RESULT_BYTES: usize = 4 << 20;
/// From so many bytes on a copy within the host is shared by threads: one alone is slower than the bus.
const SHARED_COPY_BYTES: usize = 8 << 20;
const DISABLE_TIMING: u32 = 2;

/// Pinned memory and an event that tells when it has been sent or filled.
struct Slot {
    memory: *mut u8,
    bytes: usize,
    event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: the memory belongs to the slot, and the driver's handles may be used from any thread.
unsafe impl Send for Slot {}

impl Slot {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let (mut memory, mut event) = (std::ptr::null_mut(), std::ptr::null_mut());
        // Cached memory, not write-combined: results are read from it, and it is fast enough to write.
        // SAFETY: `memory` and `event` are where the answers go.
        unsafe {
            context.check("cuEventCreate", sys::cuEventCreate(&mut event, DISABLE_TIMING))?;
            let mut slot = Self { memory: std::ptr::null_mut(), bytes, event, context: context.clone() };
            context.check(&format!("cuMemHostAlloc of {bytes} bytes"), sys::cuMemHostAlloc(&mut memory, bytes, 0))?;
            slot.memory = memory.cast();
            Ok(slot)
        }
    }

    /// Waits until what it held has been sent, or what it is to hold is there. An event that was never recorded is over.
    fn wait(&self) -> Result<()> {
        // SAFETY: the event lives as long as the slot.
        self.context.check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.event) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: what was sent from the slot is waited for, and nobody else has its memory.
            unsafe {
                self.context.note("cuEventSynchronize", sys::cuEventSynchronize(self.event));
                self.context.note("cuEventDestroy", sys::cuEventDestroy_v2(self.event));
                if !self.memory.is_null() {
                    self.context.note("cuMemFreeHost", sys::cuMemFreeHost(self.memory.cast()));
                }
            }
        }
    }
}

/// Slots that are used in turn.
struct Ring {
    slots: Vec<Slot>,
    next: usize,
}

impl Ring {
    fn new(context: &Arc<Context>, (bytes, count): (usize, usize)) -> Result<Self> {
        let slots = (0..count).map(|_| Slot::new(context, bytes)).collect::<Result<_>>()?;
        Ok(Self { slots, next: 0 })
    }

    /// Sends `src`, at most a slot long.
    ///
    /// # Safety
    /// There is so much memory at `dst`.
    unsafe fn send(&mut self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        let slot = &self.slots[self.next];
        self.next = (self.next + 1) % self.slots.len();
        let context = &slot.context;
        slot.wait()?;
        // SAFETY: the slot is at least as long as `src`, nothing is being sent from it, and both it and the device's memory
        // are there until the copy is over, which the event tells.
        unsafe {
            assert!(src.len() <= slot.bytes);
            copy_within_host(slot.memory, src);
            let code = sys::cuMemcpyHtoDAsync_v2(dst.0, slot.memory.cast_const().cast(), src.len(), context.stream());
            context.check("cuMemcpyHtoDAsync", code)?;
            context.check("cuEventRecord", sys::cuEventRecord(slot.event, context.stream()))
        }
    }
}

/// Copies on some threads where that is faster.
///
/// # Safety
/// There is so much memory at `dst`, which nobody else uses.
unsafe fn copy_within_host(dst: *mut u8, src: &[u8]) {
    // SAFETY: by this function's contract.
    let dst = unsafe { std::slice::from_raw_parts_mut(dst, src.len()) };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    if src.len() < SHARED_COPY_BYTES || num_threads == 1 {
        dst.copy_from_slice(src);
        return;
    }
    let part_len = src.len().div_ceil(num_threads);
    std::thread::scope(|scope| {
        for (dst, src) in dst.chunks_mut(part_len).zip(src.chunks(part_len)) {
            scope.spawn(|| dst.copy_from_slice(src));
        }
    });
}

/// Pinned memory for both ways.
pub(super) struct Staging {
    small: Ring,
    large: Ring,
    result: Slot,
}

impl Staging {
    /// Takes all of it.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        context.enter()?;
        let (small, large) = (Ring::new(context, SMALL)?, Ring::new(context, LARGE)?);
        Ok(Self { small, large, result: Slot::new(context, RESULT_BYTES)? })
    }

    /// Sends `src`, which may be changed once this returns.
    ///
    /// # Safety
    /// There is so much memory at `dst`.
    pub(super) unsafe fn upload(&mut self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        let (ring, len) = if src.len() <= SMALL.0 { (&mut self.small, SMALL.0) } else { (&mut self.large, LARGE.0) };
        for (index, part) in src.chunks(len).enumerate() {
            // SAFETY: by this function's contract.
            unsafe { ring.send(dst.offset(index * len), part)? };
        }
        Ok(())
    }

    /// Brings `dst.len()` bytes, and waits for all before.
    ///
    /// # Safety
    /// There is so much memory at `src`.
    pub(super) unsafe fn download(&mut self, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        let Slot { memory, bytes, context, .. } = &self.result;
        for (index, part) in dst.chunks_mut(*bytes).enumerate() {
            let from = src.offset(index * bytes).0;
            // SAFETY: by this function's contract, and because the slot is at least as long as the part; it is read after
            // the copy is over.
            unsafe {
                let code = sys::cuMemcpyDtoHAsync_v2(memory.cast(), from, part.len(), context.stream());
                context.check("cuMemcpyDtoHAsync", code)?;
                context.check("cuStreamSynchronize", sys::cuStreamSynchronize(context.stream()))?;
                part.copy_from_slice(std::slice::from_raw_parts(*memory, part.len()));
            }
        }
        Ok(())
    }
}

/// Pinned memory for what a step answers. The event tells when the last words are there, whatever has been launched since.
pub(super) struct PinnedMailbox {
    slot: Slot,
}

impl PinnedMailbox {
    /// Room for `len` words.
    pub(super) fn new(context: &Arc<Context>, len: usize) -> Result<Self> {
        let slot = Slot::new(context, len * 4)?;
        // SAFETY: the slot has so many bytes. They are read as numbers before the device has written all of them.
        unsafe { std::ptr::write_bytes(slot.memory, 0, slot.bytes) };
        Ok(Self { slot })
    }
}

impl Mailbox for PinnedMailbox {
    unsafe fn fetch(&mut self, at: usize, src: DevicePtr, len: usize) -> Result<()> {
        let Slot { memory, bytes, event, context } = &self.slot;
        assert!((at + len) * 4 <= *bytes, "invariant: what is fetched fits");
        context.enter()?;
        // SAFETY: the device's memory is there by the contract, and the slot, which was checked to be long enough, is until
        // the event has come.
        unsafe {
            if len > 0 {
                let code = sys::cuMemcpyDtoHAsync_v2(memory.add(at * 4).cast(), src.0, len * 4, context.stream());
                context.check("cuMemcpyDtoHAsync", code)?;
            }
            context.check("cuEventRecord", sys::cuEventRecord(*event, context.stream()))
        }
    }

    fn wait(&self) -> Result<&[u32]> {
        self.slot.context.enter()?;
        self.slot.wait()?;
        // SAFETY: pinned memory is aligned to pages and was filled, and nobody writes it until the next `fetch`.
        Ok(unsafe { std::slice::from_raw_parts(self.slot.memory.cast(), self.slot.bytes / 4) })
    }
}
