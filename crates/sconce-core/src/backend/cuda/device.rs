//! [`Device`]: what kernels run on. A GPU by way of its driver; in tests also this machine, by way of kernels that the
//! C++ compiler has made (`kernels/host/`).

use std::ffi::c_void;

use crate::error::Result;

/// An address in a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DevicePtr(pub(crate) u64);

impl DevicePtr {
    /// No memory: what kernels take for an optional argument that is absent.
    pub(crate) const NULL: Self = Self(0);

    /// The address so many bytes further.
    pub(crate) fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// How the threads of a launch are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dims {
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block: whole warps.
    pub(crate) block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
    /// So many neighbouring blocks run together and see each other's shared memory: 1, or on Hopper up to 8. It divides the grid.
    pub(crate) cluster: u32,
    /// Whether it may begin while the kernel before it ends.
    pub(crate) overlaps: bool,
}

impl Dims {
    /// `blocks` blocks of `threads` threads.
    pub(crate) fn linear(blocks: usize, threads: usize) -> Self {
        Self { grid: [blocks as u32, 1, 1], block: [threads as u32, 1, 1], shared_bytes: 0, cluster: 1, overlaps: true }
    }

    /// A thread a unit, in blocks of 256.
    pub(crate) fn over(units: usize) -> Self {
        Self::linear(units.div_ceil(256), 256)
    }

    /// A thread a unit of each row, in blocks of at most 256: grid (rows, blocks).
    pub(crate) fn over_rows(rows: usize, units: usize) -> Self {
        let threads = units.next_multiple_of(32).clamp(32, 256);
        let grid = [rows as u32, units.div_ceil(threads) as u32, 1];
        Self { grid, ..Self::linear(0, threads) }
    }

    /// With so much dynamic shared memory a block.
    pub(crate) fn with_shared(self, shared_bytes: usize) -> Self {
        Self { shared_bytes: shared_bytes as u32, ..self }
    }

    /// In clusters of so many blocks.
    pub(crate) fn in_clusters(self, cluster: usize) -> Self {
        Self { cluster: cluster as u32, ..self }
    }

    /// Begins when the kernel before it has ended, if so asked: it reads what that one writes before it would wait.
    pub(crate) fn behind(self, is_behind: bool) -> Self {
        Self { overlaps: !is_behind, ..self }
    }

    /// Whether there is nothing to launch.
    pub(crate) fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// An array of 16-bit numbers as Hopper's copies of boxes see it, neighbours first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BoxShape {
    pub(crate) elem: ElemType,
    /// Numbers of a row, rows, and how many arrays of them follow one another.
    pub(crate) dims: [usize; 3],
    /// The same of a box. A row has 128 bytes, which are swizzled.
    pub(crate) box_dims: [u32; 3],
}

/// What a device's driver makes of a [`BoxShape`] and an address, for kernels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct TensorMap(pub(crate) [u64; 16]);

/// The most arguments of a kernel, and how many of them may be maps.
const MAX_ARGS: usize = 32;
const MAX_MAPS: usize = 2;

/// A kernel's arguments, in its order.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Args {
    cells: [u64; MAX_ARGS],
    len: usize,
    /// The arguments that fit into no cell, and which they are.
    maps: [TensorMap; MAX_MAPS],
    map_idxs: [usize; MAX_MAPS],
    num_maps: usize,
}

/// What a kernel takes: at most 8 bytes, little end first in a cell.
pub(crate) trait Arg {
    /// The cell.
    fn cell(self) -> u64;
}

impl Arg for DevicePtr {
    fn cell(self) -> u64 {
        self.0
    }
}

impl Arg for u64 {
    fn cell(self) -> u64 {
        self
    }
}

impl Arg for u32 {
    fn cell(self) -> u64 {
        u64::from(self)
    }
}

impl Arg for f32 {
    fn cell(self) -> u64 {
        u64::from(self.to_bits())
    }
}

/// A length, which kernels take as `u32`.
impl Arg for usize {
    fn cell(self) -> u64 {
        u64::from(u32::try_from(self).expect("invariant: lengths of a step fit into 32 bits"))
    }
}

impl Args {
    /// No arguments.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// With one more.
    pub(crate) fn with(mut self, arg: impl Arg) -> Self {
        self.cells[self.len] = arg.cell();
        self.len += 1;
        self
    }

    /// With a map, of which a kernel takes two at most.
    pub(crate) fn with_map(mut self, map: &TensorMap) -> Self {
        (self.maps[self.num_maps], self.map_idxs[self.num_maps]) = (*map, self.len);
        self.num_maps += 1;
        self.len += 1;
        self
    }

    /// A pointer to each, as the driver takes them. They are good as long as `self` stays where it is.
    pub(crate) fn pointers(&self) -> [*mut c_void; MAX_ARGS] {
        let mut pointers = self.cells.each_ref().map(|cell| std::ptr::from_ref(cell).cast_mut().cast());
        for (map, idx) in self.maps.iter().zip(self.map_idxs).take(self.num_maps) {
            pointers[idx] = std::ptr::from_ref(map).cast_mut().cast();
        }
        pointers
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Types of numbers in a device's memory that kernels compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElemType {
    /// 4 bytes.
    F32,
    /// 2 bytes, the range of f32.
    Bf16,
    /// 2 bytes, three more bits of precision.
    F16,
}

impl ElemType {
    /// Bytes of one.
    pub(crate) fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Of a kernel's two names the one for this type of 16 bits.
    pub(crate) fn kernel(self, bf16: &'static str, f16: &'static str) -> &'static str {
        match self {
            Self::Bf16 => bf16,
            Self::F16 => f16,
            Self::F32 => unreachable!("kernels are for inputs of 16 bits"),
        }
    }
}

/// out = x . weight^T: a product of matrices in row-major order. Sums are taken in f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matmul {
    /// [num_rows, out_cols], `out_type`. Rows follow one another at `out_stride` elements.
    pub(crate) out: DevicePtr,
    /// [num_rows, cols], `in_type`.
    pub(crate) x: DevicePtr,
    /// [out_cols, cols], `in_type`.
    pub(crate) weight: DevicePtr,
    pub(crate) num_rows: usize,
    pub(crate) cols: usize,
    pub(crate) out_cols: usize,
    pub(crate) out_stride: usize,
    pub(crate) in_type: ElemType,
    pub(crate) out_type: ElemType,
}

/// What kernels run on. Calls are carried out in the order in which they are made, and most of them later than they return.
pub(crate) trait Device: Send + Sync {
    /// In words.
    fn name(&self) -> String;

    /// Streaming multiprocessors: how many blocks keep it busy.
    fn num_sms(&self) -> usize;

    /// The most shared memory that a block can have.
    fn max_shared_bytes(&self) -> usize;

    /// Whether a short kernel of so many rows lets the one behind it begin before it has waited itself (`gpu/launch.rs`).
    fn lets_next(&self, num_rows: usize) -> bool;

    /// Whether it does not come back from an error. What is on it is lost with it.
    fn is_lost(&self) -> bool;

    /// Bytes that can still be allocated.
    fn free_memory(&self) -> Result<usize>;

    /// Memory whose contents are anything, aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<DevicePtr>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `ptr` comes from [`Device::alloc`], and nobody uses it any more.
    unsafe fn free(&self, ptr: DevicePtr);

    /// Copies `src` to the device. It may be changed once the call returns.
    ///
    /// # Safety
    /// There is so much memory at `dst`.
    unsafe fn upload(&self, dst: DevicePtr, src: &[u8]) -> Result<()>;

    /// Copies to `dst`, and waits for it and for all before it.
    ///
    /// # Safety
    /// There is so much memory at `src`.
    unsafe fn download(&self, dst: &mut [u8], src: DevicePtr) -> Result<()>;

    /// Room on the host for `len` words that come while the caller goes on.
    fn mailbox(&self, len: usize) -> Result<Box<dyn Mailbox>>;

    /// Copies within the device.
    ///
    /// # Safety
    /// There is so much memory at both, and the two do not overlap.
    unsafe fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()>;

    /// Fills with zero bytes.
    ///
    /// # Safety
    /// There is so much memory at `dst`.
    unsafe fn clear(&self, dst: DevicePtr, bytes: usize) -> Result<()>;

    /// Whether there is a kernel of that name: some are made for one kind of device alone.
    fn has_kernel(&self, kernel: &str) -> bool;

    /// The array at `at` for copies of boxes, or `None` where a device does not have them.
    fn tensor_map(&self, at: DevicePtr, shape: &BoxShape) -> Result<Option<TensorMap>>;

    /// Runs `kernel`. An empty grid is no launch.
    ///
    /// # Safety
    /// The arguments are those of the kernel's declaration, and the memory that they name is as its head says.
    unsafe fn launch(&self, kernel: &str, dims: &Dims, args: &Args) -> Result<()>;

    /// Multiplies matrices of many rows.
    ///
    /// # Safety
    /// There is so much memory as the shapes say.
    unsafe fn matmul(&self, call: &Matmul) -> Result<()>;

    /// Which of `num_candidates` takes the least time, each of which `work` does after what `before` does, whose time does not count;
    /// what overlaps with it does not either.
    /// `None`: `work` refuses all, or the device takes no times. Nothing may be captured.
    fn fastest(
        &self,
        _num_candidates: usize,
        _before: &mut dyn FnMut() -> Result<()>,
        _work: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Waits for everything.
    fn synchronize(&self) -> Result<()>;

    /// From now on calls are written down, not carried out, until [`Device::end_capture`].
    fn begin_capture(&self) -> Result<()>;

    /// What was written down, to be run as often as wanted. The memory that it names must stay.
    fn end_capture(&self) -> Result<Box<dyn Graph>>;
}

/// Memory of the host to which a device brings words while the caller goes on.
pub(crate) trait Mailbox: Send {
    /// From now on `len` words from `src` come to word `at`, once all calls to the device before this one are done.
    ///
    /// # Safety
    /// There is so much memory at `src`.
    unsafe fn fetch(&mut self, at: usize, src: DevicePtr, len: usize) -> Result<()>;

    /// All words, once what was asked for is there. What was called after the last [`Mailbox::fetch`] is not waited for.
    fn wait(&self) -> Result<&[u32]>;
}

/// Launches that were written down.
pub(crate) trait Graph: Send {
    /// Runs them all, in order with other calls to the device.
    ///
    /// # Safety
    /// The memory that the launches name is still there.
    unsafe fn launch(&self) -> Result<()>;
}
