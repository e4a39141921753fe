//! The launches of `kernels/sample.cu`: three for all rows of a step, one copy to the device before them and one back.
//!
//! Nobody waits for them here: a step's results come to its own [`Answers`], which can be read while the next step runs.

use std::sync::Arc;

use super::decode::{Reading, decode};
use super::encode::{LaunchRows, MAX_EDITED_ROWS, MAX_EDITS_LEN, MAX_RESULTS_LEN, MAX_ROWS, MAX_VOCAB_SIZE, ROW_LEN};
use crate::backend::cuda::device::{Args, Device, DevicePtr, Dims, ElemType, Mailbox};
use crate::backend::cuda::storage::{Buffer, Memory};
use crate::error::Result;
use crate::sample::{SampleKind, SampleResults, SampleRow, Sampler};

/// Tokens of a chunk, and the threads of the kernels, as `sample.cu` has them.
const CHUNK: usize = 4096;
const SCAN_THREADS: usize = 256;
const CHOOSE_THREADS: usize = 512;
/// Parts of a chunk whose best are known: one a warp.
const MAXIMA: usize = SCAN_THREADS / 32;

/// What sampling needs of a device's memory, for rows of one length. Taken once.
pub(crate) struct SampleSpace {
    device: Arc<dyn Device>,
    vocab_size: usize,
    /// `[MAX_ROWS, ROW_LEN]`, and behind them the edits, `[MAX_EDITS_LEN]`.
    inputs: Memory,
    /// `[MAX_EDITED_ROWS, vocab_size]` f32.
    edited: Memory,
    /// `[MAX_ROWS, 2, num_chunks * MAXIMA]` u64: the greatest keys.
    best: Memory,
    /// `[MAX_ROWS, 2, num_chunks]` u64: the sums of weights.
    mass: Memory,
    /// `[MAX_RESULTS_LEN]`.
    results: Memory,
    /// `[max_logits]`: of each row of the logits the token that was sampled.
    sampled: Memory,
    launch: LaunchRows,
    /// What is sent; kept for its memory.
    words: Vec<u32>,
    /// For rows that ask for more than a launch holds.
    sampler: Sampler,
}

impl SampleSpace {
    /// For at most `max_logits` rows of `vocab_size`.
    pub(crate) fn new(device: &Arc<dyn Device>, max_logits: usize, vocab_size: usize) -> Result<Self> {
        let memory = |len: usize, elem_bytes: usize| Memory::new(device, len * elem_bytes);
        let chunks_len = MAX_ROWS * 2 * vocab_size.div_ceil(CHUNK);
        Ok(Self {
            device: Arc::clone(device),
            vocab_size,
            inputs: memory(MAX_ROWS * ROW_LEN + MAX_EDITS_LEN, 4)?,
            edited: memory(MAX_EDITED_ROWS * vocab_size, 4)?,
            best: memory(chunks_len * MAXIMA, 8)?,
            mass: memory(chunks_len, 8)?,
            results: memory(MAX_RESULTS_LEN, 4)?,
            sampled: memory(max_logits, 4)?,
            launch: LaunchRows::default(),
            words: Vec::new(),
            sampler: Sampler::new(0),
        })
    }

    /// Sends the rows of the launch and their edits; returns where the edits begin.
    fn upload(&mut self) -> Result<DevicePtr> {
        self.words.clone_from(&self.launch.rows);
        self.words.extend_from_slice(&self.launch.edits);
        self.inputs.write(0, bytemuck::cast_slice(&self.words))?;
        Ok(self.inputs.ptr().offset(self.launch.rows.len() * 4))
    }

    /// Of each row of the logits the token that the last step has sampled from it, if it has.
    pub(crate) fn sampled(&self) -> DevicePtr {
        self.sampled.ptr()
    }

    /// Launches the kernels for the rows that have been encoded, and has their results sent to `out`.
    fn run(&mut self, out: &mut Answers, logits: &Buffer) -> Result<()> {
        let edits = self.upload()?;
        let num_rows = self.launch.num_rows();
        let num_chunks = self.vocab_size.div_ceil(CHUNK);
        let Self { inputs, edited, best, mass, results, sampled, .. } = self;
        let (rows, logits) = (inputs.ptr(), logits.ptr());
        let scan = |of_beams: u32| {
            let args = Args::new().with(best.ptr()).with(edited.ptr()).with(logits).with(rows).with(edits);
            args.with(mass.ptr()).with(self.vocab_size).with(of_beams)
        };
        let weigh = Args::new().with(mass.ptr()).with(best.ptr()).with(edited.ptr()).with(logits).with(rows);
        let weigh = weigh.with(self.vocab_size);
        let choose = Args::new().with(results.ptr()).with(sampled.ptr()).with(best.ptr()).with(mass.ptr());
        let choose = choose.with(edited.ptr()).with(logits).with(rows).with(self.vocab_size).with(num_chunks);
        let by_chunk = Dims { grid: [num_chunks as u32, num_rows as u32, 1], ..Dims::linear(0, SCAN_THREADS) };
        // SAFETY: the memory is as long as the kernels' heads say for so many rows (`LaunchRows` counts them, and their
        // edits and results), rows name rows of the logits, and the arguments are in the kernels' order.
        unsafe {
            self.device.launch("sample_scan", &by_chunk, &scan(0))?;
            self.device.launch("sample_weigh", &by_chunk, &weigh)?;
            if self.launch.has_edited_beams {
                self.device.launch("sample_scan", &by_chunk, &scan(1))?;
            }
            self.device.launch("sample_choose", &Dims::linear(num_rows, CHOOSE_THREADS), &choose)?;
        }
        let len = self.launch.result_starts[num_rows];
        // SAFETY: results are as long as where the last of them ends.
        unsafe { out.fetch(self.results.ptr(), len) }
    }

    /// Answers a row on the host, with a copy of its logits.
    fn answer_on_host(&mut self, out: &mut SampleResults, logits: &Buffer, row: &SampleRow<'_>) -> Result<()> {
        let mut copy = vec![0.0f32; self.vocab_size];
        let at = logits.ptr().offset(row.row * self.vocab_size * 4);
        // SAFETY: the caller has checked that the row is one of the buffer's.
        unsafe { self.device.download(bytemuck::cast_slice_mut(&mut copy), at)? };
        self.sampler.answer(&copy, &row.kind, out);
        match (row.kind, out.last()) {
            (SampleKind::Token(_), Some(last)) => self.sampled.write(row.row * 4, &last.token_id.to_le_bytes()),
            _ => Ok(()),
        }
    }
}

/// A step's answers, until they are read.
pub struct Answers {
    mailbox: Box<dyn Mailbox>,
    /// How the results of each row that are on their way are read, and where they end in the mailbox.
    on_their_way: Vec<(Reading, usize)>,
    results: SampleResults,
}

impl Answers {
    /// Room for a step's answers.
    pub(crate) fn new(device: &Arc<dyn Device>) -> Result<Self> {
        let mailbox = device.mailbox(MAX_RESULTS_LEN)?;
        Ok(Self { mailbox, on_their_way: Vec::new(), results: SampleResults::default() })
    }

    /// Where in the mailbox the results end that are on their way.
    fn end(&self) -> usize {
        self.on_their_way.last().map_or(0, |&(_, end)| end)
    }

    /// Has `len` words of results sent, behind those that are on their way.
    ///
    /// # Safety
    /// There are so many at `src`.
    unsafe fn fetch(&mut self, src: DevicePtr, len: usize) -> Result<()> {
        // SAFETY: by the contract.
        unsafe { self.mailbox.fetch(self.end(), src, len) }
    }

    /// The answers, once those that are on their way have come. Later steps are not waited for.
    pub(crate) fn read(&mut self) -> Result<&mut SampleResults> {
        let words = self.mailbox.wait()?;
        let mut start = 0;
        for (reading, end) in self.on_their_way.drain(..) {
            self.results.push(|out| decode(out, &reading, &words[start..end]));
            start = end;
        }
        Ok(&mut self.results)
    }
}

/// The same as the reference on a device, where answers come when they are read. What few requests ask for, more edits or longer
/// lists than a launch holds, is answered on the host from a copy of the row, which is waited for.
pub(crate) fn cuda(space: &mut SampleSpace, out: &mut Answers, logits: &Buffer, rows: &[SampleRow<'_>]) -> Result<()> {
    assert!(logits.cols() == space.vocab_size && logits.elem() == ElemType::F32, "invariant: rows of f32 logits");
    assert!(logits.max_rows() * 4 <= space.sampled.bytes(), "invariant: the buffer for which there is space");
    assert!(rows.iter().all(|row| row.row < logits.max_rows()), "invariant: rows of the step's logits");
    out.results.clear();
    out.on_their_way.clear();
    if rows.is_empty() {
        // Who reads the answers of such a step waits until it is done all the same.
        // SAFETY: nothing is read.
        unsafe { out.fetch(space.results.ptr(), 0)? };
    }
    let mut rest = rows;
    while let Some(first) = rest.first() {
        let is_short = space.vocab_size <= MAX_VOCAB_SIZE;
        let num_taken = if is_short { space.launch.fill(rest) } else { 0 };
        if num_taken == 0 {
            space.answer_on_host(out.read()?, logits, first)?;
            rest = &rest[1..];
            continue;
        }
        if out.end() + space.launch.result_starts[num_taken] > MAX_RESULTS_LEN {
            out.read()?;
        }
        let start = out.end();
        space.run(out, logits)?;
        let ends = space.launch.result_starts[1..].iter().map(|end| start + end);
        out.on_their_way.extend(rest[..num_taken].iter().map(|row| Reading::of(&row.kind)).zip(ends));
        rest = &rest[num_taken..];
    }
    Ok(())
}
