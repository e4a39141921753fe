//! [`LaunchRows`]: what `kernels/sample.cu` takes: its `struct Row`s, and the edits that they ask for.

use crate::config::{LogprobsMode, SamplingParams};
use crate::sample::{LogitsProcessor, SampleInput, SampleKind, SampleRow, uniform};

/// u32s of a `struct Row`.
pub(super) const ROW_LEN: usize = 28;
/// u32s of a `struct Head`, with which a row's results begin.
pub(super) const HEAD_LEN: usize = 12;
/// Most rows of a launch.
pub(super) const MAX_ROWS: usize = 256;
/// Most rows that are edited in one launch, each in a copy.
pub(super) const MAX_EDITED_ROWS: usize = 32;
/// Most u32s of edits, and of results, in one launch.
pub(super) const MAX_EDITS_LEN: usize = 1 << 20;
pub(super) const MAX_RESULTS_LEN: usize = 1 << 18;
/// Longest row: sums of so many weights fit an f64.
pub(super) const MAX_VOCAB_SIZE: usize = 1 << 19;
/// Most tokens of a list.
const MAX_LIST: usize = 1024;

/// Lists of edits of a row.
const NUM_LISTS: usize = 5;

const EDITS: u32 = 1;
const GREEDY: u32 = 2;
const PROCESSED: u32 = 4;
const REPORTS: u32 = 8;

/// The rows of one launch.
#[derive(Debug, Default)]
pub(super) struct LaunchRows {
    /// `[num_rows, ROW_LEN]`.
    pub(super) rows: Vec<u32>,
    /// The lists of edits of all rows, one after the other.
    pub(super) edits: Vec<u32>,
    /// Where each row's results begin, and where the last one's end.
    pub(super) result_starts: Vec<usize>,
    /// Rows that are edited.
    pub(super) num_edited: usize,
    /// Whether beams are among them.
    pub(super) has_edited_beams: bool,
}

/// Which lists a row's results have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lists {
    /// Tokens that are listed of the view that is reported on; with beams, of the view that candidates come from.
    pub(super) num_listed: usize,
    /// With beams, tokens that are listed of the logits as they were, where they are reported on and others decide.
    pub(super) num_raw_listed: usize,
    /// Candidates whose own reports follow then.
    pub(super) num_reports: usize,
}

impl Lists {
    /// What is listed of a row.
    pub(super) fn of(kind: &SampleKind<'_>) -> Self {
        let (num_listed, num_raw_listed, num_reports) = match *kind {
            SampleKind::Token(input) => (input.params.logprobs.unwrap_or(0), 0, 0),
            SampleKind::PromptLogprobs { num_top, .. } => (num_top, 0, 0),
            SampleKind::BeamCandidates { input, k } => match input.params.logprobs {
                None => (k, 0, 0),
                Some(num_top) if reports_unedited(&input) => (k, num_top, k),
                Some(num_top) => (k.max(num_top), 0, 0),
            },
        };
        Self { num_listed, num_raw_listed, num_reports }
    }

    /// u32s of a row's results.
    fn results_len(self) -> usize {
        HEAD_LEN + 2 * (self.num_listed + self.num_raw_listed + self.num_reports)
    }
}

/// Whether candidates come from edited logits and reports are of those before.
pub(super) fn reports_unedited(input: &SampleInput<'_>) -> bool {
    input.params.logprobs_mode == LogprobsMode::Raw && !LogitsProcessor::new(input).is_neutral()
}

impl LaunchRows {
    pub(super) fn num_rows(&self) -> usize {
        self.rows.len() / ROW_LEN
    }

    /// Takes as many rows as fit into one launch, from the first on, and returns how many.
    pub(super) fn fill(&mut self, rows: &[SampleRow<'_>]) -> usize {
        self.rows.clear();
        self.edits.clear();
        self.result_starts.clear();
        self.result_starts.push(0);
        self.num_edited = 0;
        self.has_edited_beams = false;
        rows.iter().take(MAX_ROWS).take_while(|row| self.push(row)).count()
    }

    /// Takes one more row; false if it does not fit.
    fn push(&mut self, row: &SampleRow<'_>) -> bool {
        let lists = Lists::of(&row.kind);
        let result_start = self.result_starts[self.num_rows()];
        let result_end = result_start + lists.results_len();
        let is_edited = input_of(&row.kind).is_some_and(|input| !LogitsProcessor::new(&input).is_neutral());
        if result_end > MAX_RESULTS_LEN
            || lists.num_listed.max(lists.num_raw_listed) > MAX_LIST
            || (is_edited && self.num_edited == MAX_EDITED_ROWS)
        {
            return false;
        }
        let len_before = self.edits.len();
        let edits = input_of(&row.kind).map_or([0; NUM_LISTS * 2], |input| self.push_edits(&input));
        if self.edits.len() > MAX_EDITS_LEN {
            self.edits.truncate(len_before);
            return false;
        }
        let place = Place { is_edited, edited_row: self.num_edited as u32, result_start: result_start as u32, edits };
        self.rows.extend(row_words(row, lists, place));
        self.result_starts.push(result_end);
        self.num_edited += usize::from(is_edited);
        self.has_edited_beams |= is_edited && matches!(row.kind, SampleKind::BeamCandidates { .. });
        true
    }

    /// Adds a row's lists of edits; returns where each begins and how long it is.
    fn push_edits(&mut self, input: &SampleInput<'_>) -> [u32; NUM_LISTS * 2] {
        let (params, edits) = (input.params, &mut self.edits);
        let mut lists = [0; NUM_LISTS * 2];
        let mut begin = edits.len();
        let mut end_list = |idx: usize, edits: &[u32], elem_len: usize| {
            lists[2 * idx] = begin as u32;
            lists[2 * idx + 1] = ((edits.len() - begin) / elem_len) as u32;
            begin = edits.len();
        };
        edits.extend(LogitsProcessor::new(input).masked_ids());
        end_list(0, edits, 1);
        let mut biases = params.logit_bias.clone();
        // Stable: biases of one token stay in their order.
        biases.sort_by_key(|&(token_id, _)| token_id);
        edits.extend(biases.iter().flat_map(|&(token_id, bias)| [token_id, bias.to_bits()]));
        end_list(1, edits, 2);
        if params.repetition_penalty != 1.0 {
            edits.extend_from_slice(input.counts.prompt());
        }
        end_list(2, edits, 1);
        if params.has_penalties() {
            let generated = input.counts.generated().iter();
            edits.extend(generated.flat_map(|seen| [seen.token_id, seen.count << 1 | u32::from(seen.in_prompt)]));
        }
        end_list(3, edits, 2);
        if let Some(allowed) = input.allowed {
            edits.extend_from_slice(allowed.words());
            // A list without words would be no mask.
            edits.extend(allowed.words().is_empty().then_some(0));
        }
        end_list(4, edits, 1);
        lists
    }
}

/// Where a row's part of a launch lies.
struct Place {
    is_edited: bool,
    edited_row: u32,
    result_start: u32,
    /// Start and length of its lists of edits.
    edits: [u32; NUM_LISTS * 2],
}

fn input_of<'a>(kind: &SampleKind<'a>) -> Option<SampleInput<'a>> {
    match *kind {
        SampleKind::Token(input) | SampleKind::BeamCandidates { input, .. } => Some(input),
        SampleKind::PromptLogprobs { .. } => None,
    }
}

/// The kernels' `struct Row`, field by field.
fn row_words(row: &SampleRow<'_>, lists: Lists, place: Place) -> [u32; ROW_LEN] {
    let (kind, chosen) = match row.kind {
        SampleKind::Token(_) => (0, 0),
        SampleKind::BeamCandidates { .. } => (1, 0),
        SampleKind::PromptLogprobs { chosen, .. } => (2, chosen),
    };
    let neutral = SamplingParams { temperature: 0.0, logprobs: Some(0), ..Default::default() };
    let input = input_of(&row.kind);
    let params = input.map_or(&neutral, |input| input.params);
    let is_token = kind == 0;
    let bits = [
        (EDITS, place.is_edited),
        (GREEDY, params.is_greedy()),
        (PROCESSED, params.logprobs_mode == LogprobsMode::Processed),
        (REPORTS, params.logprobs.is_some()),
    ];
    let flags = bits.iter().fold(0, |flags, &(bit, is_set)| if is_set { flags | bit } else { flags });
    let is_drawn = is_token && !params.is_greedy();
    let number = input.filter(|_| is_drawn).map_or(0.0, |i| uniform(i.seed, i.sequence_index, i.position, 0)).to_bits();
    let [masked, num_masked, biases, num_biases, prompt, num_prompt, generated, num_generated, allowed, num_allowed] =
        place.edits;
    [
        kind,
        flags,
        row.row as u32,
        place.edited_row,
        if is_drawn { params.temperature } else { 1.0 }.to_bits(),
        params.top_p.to_bits(),
        params.min_p.to_bits(),
        params.top_k.map_or(0, |k| u32::try_from(k).unwrap_or(0)),
        chosen,
        lists.num_listed as u32,
        lists.num_raw_listed as u32,
        lists.num_reports as u32,
        number as u32,
        (number >> 32) as u32,
        place.result_start,
        masked,
        num_masked,
        biases,
        num_biases,
        prompt,
        num_prompt,
        generated,
        num_generated,
        allowed,
        num_allowed,
        params.repetition_penalty.to_bits(),
        params.frequency_penalty.to_bits(),
        params.presence_penalty.to_bits(),
    ]
}
