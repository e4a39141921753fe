//! [`Unpacked`]: a panel's codes as registers take them and its scales in f32, and their products with tiles of tokens.

use std::arch::x86_64::*;

use super::avx2::{HALF, Task, add_scaled, load_codes, scaled_sum, store, words_of_bytes};
use super::panels::format::*;
use super::panels::{GROUP, Panels, ROWS, Scales};

/// Tokens of a tile.
pub(super) const TOKENS: usize = 4;

/// 64 bytes that begin at a multiple of 64, so that no register is loaded from two lines.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Aligned<T>(T);

/// A panel for many tokens.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// Whether codes are unsigned bytes, for inputs of 8 bits; else they are words, with the sign of what they stand for.
    pub(super) in_bytes: bool,
    /// Scales of 32 columns: 1 or 2.
    parts: usize,
    has_offset: bool,
    /// [groups, 4 columns in bytes, or 2 in words; halves of the panel].
    codes: Vec<Aligned<[[u8; 32]; 2]>>,
    /// [groups, parts, rows].
    scales: Vec<Aligned<[f32; ROWS]>>,
    /// The same of formats with offsets; of INT4 the codes of 0.
    offsets: Vec<Aligned<[f32; ROWS]>>,
}

impl Unpacked {
    /// Takes a panel of format `F`.
    ///
    /// # Safety
    /// The machine has AVX2, FMA and F16C; the weights have the panel.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn fill<const F: u8>(&mut self, in_bytes: bool, weight: &Panels, panel: usize, cols: usize) {
        let (groups, layout) = (cols / GROUP, const { layout_of(F) });
        (self.in_bytes, self.parts, self.has_offset) = (in_bytes, layout.parts, layout.has_offset);
        let lines_a_group = if in_bytes { GROUP / 4 } else { GROUP / 2 };
        self.codes.resize((groups * lines_a_group).max(self.codes.len()), Aligned(Default::default()));
        self.scales.resize((groups * self.parts).max(self.scales.len()), Aligned(Default::default()));
        self.offsets.resize((groups * self.parts).max(self.offsets.len()), Aligned(Default::default()));
        let scales = Scales::new(weight, panel, groups);
        let lines = weight.codes_of(panel).as_ptr();
        for g in 0..groups {
            for half in 0..2 {
                let rows = half * HALF..(half + 1) * HALF;
                // SAFETY: the panel has the group, and there is room for 8 rows of it.
                unsafe {
                    let (scale, offset) = scales.load::<F>(g, half);
                    for part in 0..layout.parts {
                        let at = g * layout.parts + part;
                        _mm256_storeu_ps(self.scales[at].0[rows.clone()].as_mut_ptr(), scale[part]);
                        _mm256_storeu_ps(self.offsets[at].0[rows.clone()].as_mut_ptr(), offset[part]);
                    }
                    let zero = match F {
                        INT4_G32 | INT4_G128 => {
                            let zero = _mm256_cvtps_epi32(offset[0]);
                            _mm256_or_si256(zero, _mm256_slli_epi32::<16>(zero))
                        }
                        _ => _mm256_set1_epi16(layout.zero_point as i16),
                    };
                    let lines = lines.add(g * layout.lines());
                    let out = &mut self.codes[g * lines_a_group..(g + 1) * lines_a_group];
                    let mut set = |line: usize, codes| {
                        _mm256_storeu_si256(out[line].0[half].as_mut_ptr().cast(), codes);
                    };
                    for quad in 0..GROUP / 4 {
                        let codes = load_codes::<F>(lines, half, quad);
                        if in_bytes {
                            set(quad, codes);
                            continue;
                        }
                        for (pair, codes) in words_of_bytes(codes).into_iter().enumerate() {
                            set(2 * quad + pair, _mm256_sub_epi16(codes, zero));
                        }
                    }
                }
            }
        }
    }

    /// Lines of codes that share a scale.
    fn lines_a_part(&self) -> usize {
        GROUP / if self.in_bytes { 4 } else { 2 } / self.parts
    }
}

/// What was unpacked, the task's panel `panel`, times tokens `start..end`.
///
/// # Safety
/// The machine has AVX2, FMA and F16C; the inputs have the tokens, and as many columns as was unpacked of format `F`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<const F: u8>(task: &Task<'_>, weight: &Unpacked, panel: usize, [start, end]: [usize; 2]) {
    let tile = Tile { task, weight, panel };
    let mut t = start;
    while t < end {
        let is_whole = end - t >= TOKENS;
        tile.prefetch(t, if is_whole { TOKENS } else { 1 });
        // SAFETY: as the caller's. Words need not know of a format more than whether there are offsets or parts.
        unsafe {
            match (weight.in_bytes, is_whole) {
                (true, true) => tile.bytes::<F, TOKENS>(t),
                (true, false) => tile.bytes::<F, 1>(t),
                (false, true) => tile.words::<TOKENS>(t),
                (false, false) => tile.words::<1>(t),
            }
        }
        t += if is_whole { TOKENS } else { 1 };
    }
}

/// A panel that tokens are multiplied with.
struct Tile<'a> {
    task: &'a Task<'a>,
    weight: &'a Unpacked,
    panel: usize,
}

impl Tile<'_> {
    /// Tokens `t0..t0 + T`, by words.
    ///
    /// # Safety
    /// As [`multiply`].
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words<const T: usize>(&self, t0: usize) {
        // SAFETY: as the caller's.
        unsafe {
            match (self.weight.parts, self.weight.has_offset) {
                (2, false) => self.words_of::<2, false, T>(t0),
                (2, true) => self.words_of::<2, true, T>(t0),
                (_, false) => self.words_of::<1, false, T>(t0),
                (_, true) => self.words_of::<1, true, T>(t0),
            }
        }
    }

    /// # Safety
    /// As [`multiply`].
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words_of<const PARTS: usize, const OFFSET: bool, const T: usize>(&self, t0: usize) {
        let (x, weight) = (self.task.x, self.weight);
        let groups = x.cols / GROUP;
        // The compiler does not know how many they are: unrolled, the sums would need more registers than there are.
        let num_lines = weight.lines_a_part();
        let mut acc = [[_mm256_setzero_ps(); T]; 2];
        for g in 0..groups {
            // SAFETY: every group has been unpacked, and each token has inputs, scales and sums of it.
            unsafe {
                let words = x.words.as_ptr().add(t0 * x.cols + g * GROUP);
                for part in 0..PARTS {
                    let codes = self.codes(g * PARTS + part);
                    let mut sums = [[_mm256_setzero_si256(); T]; 2];
                    for line in 0..num_lines {
                        let codes =
                            [_mm256_load_si256(codes.add(2 * line)), _mm256_load_si256(codes.add(2 * line + 1))];
                        for i in 0..T {
                            let at = words.add(i * x.cols + part * GROUP / 2 + 2 * line);
                            let two = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
                            for half in 0..2 {
                                let products = _mm256_madd_epi16(codes[half], two);
                                sums[half][i] = _mm256_add_epi32(sums[half][i], products);
                            }
                        }
                    }
                    let (scales, offsets) = self.scales(g, part);
                    for i in 0..T {
                        let at = (t0 + i) * groups + g;
                        let x_scale = _mm256_set1_ps(*x.scale.get_unchecked(at));
                        let x_sum = if OFFSET { scaled_sum(x, PARTS, [at, part]) } else { _mm256_setzero_ps() };
                        for half in 0..2 {
                            let (sum, acc) = (_mm256_cvtepi32_ps(sums[half][i]), &mut acc[half][i]);
                            *acc = _mm256_fmadd_ps(sum, _mm256_mul_ps(scales[half], x_scale), *acc);
                            if OFFSET {
                                *acc = _mm256_fmadd_ps(offsets[half], x_sum, *acc);
                            }
                        }
                    }
                }
            }
        }
        // SAFETY: as the caller's.
        unsafe { self.store(t0, &acc) };
    }

    /// Tokens `t0..t0 + T`, whose inputs have 8 bits.
    ///
    /// # Safety
    /// As [`multiply`].
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn bytes<const F: u8, const T: usize>(&self, t0: usize) {
        let x = self.task.x;
        let (groups, num_lines, parts) = (x.cols / GROUP, self.weight.lines_a_part(), const { layout_of(F).parts });
        let mut acc = [[_mm256_setzero_ps(); T]; 2];
        for g in 0..groups {
            // SAFETY: every group has been unpacked, and each token has inputs, scales and sums of it.
            unsafe {
                let bytes = x.hi.as_ptr().add(t0 * x.cols + g * GROUP);
                for part in 0..parts {
                    let mut sums = [[_mm256_setzero_si256(); T]; 2];
                    let codes = self.codes(g * parts + part);
                    add_products::<F, T>(&mut sums, codes, num_lines, bytes.add(part * GROUP / 2), x.cols);
                    let (scales, offsets) = self.scales(g, part);
                    for i in 0..T {
                        let at = [(t0 + i) * groups + g, part];
                        for half in 0..2 {
                            let (sum, acc) = (sums[half][i], &mut acc[half][i]);
                            *acc = add_scaled::<F>(*acc, sum, scales[half], offsets[half], x, at);
                        }
                    }
                }
            }
        }
        // SAFETY: as the caller's.
        unsafe { self.store(t0, &acc) };
    }

    /// Asks for where the products of tokens go: memory is slow to take stores to lines that no cache holds.
    #[inline(always)]
    fn prefetch(&self, t0: usize, count: usize) {
        let row = (self.panel - self.task.first) * ROWS;
        for t in t0..t0 + count {
            for row in [row, row + ROWS - 1] {
                // SAFETY: every x86-64 has the instruction, which reads nothing and takes any address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(self.task.target.address(t, row).cast()) };
            }
        }
    }

    /// The codes of a part of a group, the parts of all groups counted.
    #[inline(always)]
    fn codes(&self, part: usize) -> *const __m256i {
        self.weight.codes[part * self.weight.lines_a_part()..].as_ptr().cast()
    }

    /// Scales and offsets of each half of the panel.
    ///
    /// # Safety
    /// The machine has the instructions; the panel has the group.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(&self, g: usize, part: usize) -> ([__m256; 2], [__m256; 2]) {
        let (scales, offsets) =
            (&self.weight.scales[g * self.weight.parts + part].0, &self.weight.offsets[g * self.weight.parts + part].0);
        // SAFETY: there are 16 of each.
        let load = |x: &[f32; ROWS], half: usize| unsafe { _mm256_load_ps(x[half * HALF..].as_ptr()) };
        ([load(scales, 0), load(scales, 1)], [load(offsets, 0), load(offsets, 1)])
    }

    /// # Safety
    /// As [`multiply`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store<const T: usize>(&self, t0: usize, acc: &[[__m256; T]; 2]) {
        for i in 0..T {
            for (half, acc) in acc.iter().enumerate() {
                let row = (self.panel - self.task.first) * ROWS + half * HALF;
                // SAFETY: the task's own cells, of which no others are held here.
                unsafe { store(self.task.target, t0 + i, row, acc[i]) };
            }
        }
    }
}

/// Adds the products of a part of a group by unsigned bytes with each token's 8 bits. `bytes`: the first token's, `cols` before the next
/// one's.
///
/// # Safety
/// The machine has the instructions; there are as many lines, and inputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_products<const F: u8, const T: usize>(
    sums: &mut [[__m256i; T]; 2],
    codes: *const __m256i,
    num_lines: usize,
    bytes: *const i8,
    cols: usize,
) {
    // SAFETY: the caller vouches for both.
    let codes = |line: usize, half: usize| unsafe { _mm256_load_si256(codes.add(2 * line + half)) };
    // SAFETY: as above.
    let four = |i: usize, line: usize| unsafe {
        _mm256_set1_epi32(bytes.add(i * cols + 4 * line).cast::<i32>().read_unaligned())
    };
    let ones = _mm256_set1_epi16(1);
    if const { matches!(F, Q5_0 | Q5_1 | Q5_K | Q6_K | MXFP4) } {
        // Of up to 6 bits, two products of pairs are within 16 bits: 4 * 63 * 127.
        for line in (0..num_lines).step_by(2) {
            for half in 0..2 {
                let (first, second) = (codes(line, half), codes(line + 1, half));
                for i in 0..T {
                    let products = _mm256_add_epi16(
                        _mm256_maddubs_epi16(first, four(i, line)),
                        _mm256_maddubs_epi16(second, four(i, line + 1)),
                    );
                    sums[half][i] = _mm256_add_epi32(sums[half][i], _mm256_madd_epi16(products, ones));
                }
            }
        }
        return;
    }
    // Of up to 4 bits, all of a group's are: 16 * 15 * 127.
    for line in 0..num_lines {
        let codes = [codes(line, 0), codes(line, 1)];
        for i in 0..T {
            let four = four(i, line);
            for half in 0..2 {
                sums[half][i] = _mm256_add_epi16(sums[half][i], _mm256_maddubs_epi16(codes[half], four));
            }
        }
    }
    for sum in sums.iter_mut().flatten() {
        *sum = _mm256_madd_epi16(*sum, ones);
    }
}
