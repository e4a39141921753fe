//! [`LayerGroups`]: which layers keep keys and values of the same tokens, and how groups of them share the blocks.

/// Most groups of layers.
pub const MAX_GROUPS: usize = 2;

/// Layers that keep keys and values of the same tokens: of all, or of those in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerGroup {
    /// Tokens whose keys and values one block holds for each of the layers.
    pub block_len: usize,
    /// The layers' queries see at most so many tokens, their own among them; `None`: some see all.
    pub window: Option<usize>,
}

impl LayerGroup {
    /// Blocks that hold `num_tokens` tokens.
    pub fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_len)
    }

    /// The first token that queries from `start` on see.
    pub fn first_visible(&self, start: usize) -> usize {
        self.window.map_or(0, |window| (start + 1).saturating_sub(window))
    }

    /// The first block that queries from `start` on see.
    pub fn first_visible_block(&self, start: usize) -> usize {
        self.first_visible(start) / self.block_len
    }

    /// Blocks that a sequence of `num_tokens` tokens has at once, at most, where a step computes `step_tokens` of them.
    pub fn most_blocks(&self, num_tokens: usize, step_tokens: usize) -> usize {
        // What the first token of a step sees, and the step's; or what the one before it has seen, which is not read yet, and one.
        let spanned = |window: usize| self.blocks_for(window.saturating_add(step_tokens)) + 1;
        self.blocks_for(num_tokens).min(self.window.map_or(usize::MAX, spanned))
    }
}

/// Where a layer's keys and values are in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPlace {
    /// Its group: which block table of a sequence is the layer's.
    pub group: usize,
    /// The cache's array.
    pub array: usize,
    /// Behind so many of the array's blocks begins what the table's numbers count from.
    pub first_block: usize,
}

/// A model's layers in one group, or in two: those that see all tokens, and those with a window, which give back what is before it.
///
/// Both groups take blocks of one pool, so that none of it lies idle however long sequences are. The groups have different numbers of
/// layers, and blocks are equally large: so a block of the group with fewer layers has several *parts*, and holds as many times the
/// tokens. The cache has arrays of `pool's blocks * parts` blocks of its own. A layer of the smaller group has an array for itself, where
/// it has all parts of a block; in an array of the larger group's each part of a block is another layer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerGroups {
    groups: Vec<LayerGroup>,
    places: Vec<LayerPlace>,
    num_arrays: usize,
    num_parts: usize,
}

impl LayerGroups {
    /// All layers in one group. `windows`: of each layer; `block_size`: tokens of a block.
    pub fn one(windows: &[Option<usize>], block_size: usize) -> Self {
        let all: Option<Vec<usize>> = windows.iter().copied().collect();
        let group = LayerGroup { block_len: block_size, window: all.and_then(|windows| windows.into_iter().max()) };
        let places = (0..windows.len()).map(|array| LayerPlace { group: 0, array, first_block: 0 }).collect();
        Self { groups: vec![group], places, num_arrays: windows.len(), num_parts: 1 }
    }

    /// In two groups where a sequence of `len` tokens, of which a step computes `step_tokens`, takes less memory so; else in one.
    pub fn choose(windows: &[Option<usize>], block_size: usize, len: usize, step_tokens: usize) -> Self {
        let one = Self::one(windows, block_size);
        let num_windowed = windows.iter().flatten().count();
        let (fewer, more) =
            (num_windowed.min(windows.len() - num_windowed), num_windowed.max(windows.len() - num_windowed));
        if fewer == 0 {
            return one;
        }
        let cost = |of: &Self| of.most_blocks(len, step_tokens).saturating_mul(of.num_arrays * of.num_parts);
        let two = [more / fewer, more.div_ceil(fewer)].map(|parts| Self::two(windows, block_size, parts));
        [one].into_iter().chain(two).min_by_key(cost).expect("invariant: there is one at least")
    }

    /// In two groups, where a block of the smaller one has so many parts.
    fn two(windows: &[Option<usize>], block_size: usize, num_parts: usize) -> Self {
        let num_windowed = windows.iter().flatten().count();
        let num_all = windows.len() - num_windowed;
        let parts = if num_all <= num_windowed { [num_parts, 1] } else { [1, num_parts] };
        let mut num_placed = [0; MAX_GROUPS];
        let place = |window: &Option<usize>| {
            let group = usize::from(window.is_some());
            let idx = num_placed[group];
            num_placed[group] += 1;
            let layers_of_array = num_parts / parts[group];
            LayerPlace { group, array: idx / layers_of_array, first_block: idx % layers_of_array }
        };
        let places: Vec<LayerPlace> = windows.iter().map(place).collect();
        let num_arrays = places.iter().map(|place| place.array + 1).max().unwrap_or(0);
        let window = windows.iter().flatten().copied().max();
        let groups = [None, window].into_iter().zip(parts);
        let groups = groups.map(|(window, parts)| LayerGroup { block_len: parts * block_size, window }).collect();
        Self { groups, places, num_arrays, num_parts }
    }

    /// The groups; where there are two, first the one that sees all tokens.
    pub fn groups(&self) -> &[LayerGroup] {
        &self.groups
    }

    /// Of each layer.
    pub fn places(&self) -> &[LayerPlace] {
        &self.places
    }

    /// Arrays of the cache.
    pub fn num_arrays(&self) -> usize {
        self.num_arrays
    }

    /// Blocks that each of the pool's is in an array of the cache.
    pub fn num_parts(&self) -> usize {
        self.num_parts
    }

    /// Sequences can begin with the same blocks up to multiples of so many tokens.
    pub fn prefix_unit(&self) -> usize {
        self.groups.iter().map(|group| group.block_len).max().expect("invariant: there is a group")
    }

    /// The pool's blocks that a sequence of `num_tokens` tokens has at once, at most, where a step computes `step_tokens` of them.
    pub fn most_blocks(&self, num_tokens: usize, step_tokens: usize) -> usize {
        most_blocks(&self.groups, num_tokens, step_tokens)
    }

    /// Tokens of the longest sequence that has room in so many of the pool's blocks.
    pub fn most_tokens(&self, num_blocks: usize, step_tokens: usize) -> usize {
        // The more tokens the more blocks, and at most so many tokens a block.
        let (mut low, mut high) = (0, self.groups[0].block_len.saturating_mul(num_blocks));
        if self.groups[0].window.is_some() && self.most_blocks(usize::MAX, step_tokens) <= num_blocks {
            return usize::MAX;
        }
        while low < high {
            let middle = high - (high - low) / 2;
            if self.most_blocks(middle, step_tokens) <= num_blocks {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// Tokens that so many of the pool's blocks hold: of one sequence where there are two groups, of any number of them in one.
    pub fn pool_tokens(&self, num_blocks: usize, step_tokens: usize) -> usize {
        self.most_tokens(num_blocks, step_tokens).min(num_blocks * self.groups[0].block_len)
    }
}

/// The blocks that a sequence of `num_tokens` tokens has at once, at most, in all groups.
pub(super) fn most_blocks(groups: &[LayerGroup], num_tokens: usize, step_tokens: usize) -> usize {
    groups.iter().map(|group| group.most_blocks(num_tokens, step_tokens)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers of which every `pattern`-th sees all tokens, or, below 0, every so manieth has a window.
    fn windows(num_layers: usize, pattern: isize, window: usize) -> Vec<Option<usize>> {
        let is_special = |layer: usize| (layer + 1).is_multiple_of(pattern.unsigned_abs());
        (0..num_layers).map(|layer| (is_special(layer) != (pattern > 0)).then_some(window)).collect()
    }

    /// No two layers of a group share a part of a block, and all are within the arrays.
    fn check_places(groups: &LayerGroups) {
        for (group, of_group) in groups.groups().iter().enumerate() {
            let parts = of_group.block_len / 16;
            let places = groups.places().iter().filter(|place| place.group == group);
            let mut taken: Vec<_> =
                places.flat_map(|p| (0..parts).map(move |part| (p.array, p.first_block + part))).collect();
            assert!(taken.iter().all(|&(array, part)| array < groups.num_arrays() && part < groups.num_parts()));
            let num_taken = taken.len();
            taken.sort_unstable();
            taken.dedup();
            assert_eq!(taken.len(), num_taken, "{groups:?}");
        }
    }

    #[test]
    fn layers_of_two_kinds_share_blocks() {
        // (layers, pattern, arrays, parts): Gemma 3's 4B, 12B and 1B, Gemma 2's 2B, and few layers with a window among many without.
        for (num_layers, pattern, num_arrays, num_parts) in
            [(34, 6, 5, 6), (48, 6, 8, 5), (26, 6, 4, 6), (26, 2, 13, 1), (10, -4, 2, 4), (2, 2, 1, 1)]
        {
            let windows = windows(num_layers, pattern, 1024);
            let groups = LayerGroups::choose(&windows, 16, 1 << 15, 512);
            assert_eq!((groups.num_arrays(), groups.num_parts()), (num_arrays, num_parts), "{num_layers} {pattern}");
            assert_eq!(groups.places().len(), num_layers);
            for (place, window) in groups.places().iter().zip(&windows) {
                assert_eq!(groups.groups()[place.group].window, *window);
            }
            let lens: Vec<usize> = groups.groups().iter().map(|group| group.block_len).collect();
            let parts = if pattern > 0 { [num_parts * 16, 16] } else { [16, num_parts * 16] };
            assert_eq!(lens, parts);
            check_places(&groups);
        }
    }

    #[test]
    fn where_two_groups_save_nothing_there_is_one() {
        for (windows, len, window) in [
            (vec![None; 4], 1 << 15, None),
            (vec![Some(64), Some(32)], 1 << 15, Some(64)),
            (vec![Some(1024), None], 1024, None),
            (vec![], 1, Some(0)),
        ] {
            let groups = LayerGroups::choose(&windows, 16, len, 512);
            let window = window.filter(|&window| window > 0);
            assert_eq!(groups.groups(), [LayerGroup { block_len: 16, window }], "{windows:?}");
            assert_eq!((groups.num_arrays(), groups.num_parts()), (windows.len(), 1));
            check_places(&groups);
        }
    }

    #[test]
    fn tokens_that_have_room_are_the_most() {
        for (num_layers, pattern) in [(34, 6), (26, 2), (4, 1), (10, -4)] {
            let groups = LayerGroups::choose(&windows(num_layers, pattern, 100), 16, 1 << 15, 64);
            for num_blocks in [0, 1, 2, 13, 14, 100, 1000] {
                let len = groups.most_tokens(num_blocks, 64);
                assert!(groups.most_blocks(len, 64) <= num_blocks && groups.most_blocks(len + 1, 64) > num_blocks);
            }
        }
        // Where every layer has a window, no sequence is too long for some blocks.
        let groups = LayerGroups::one(&[Some(100)], 16);
        assert_eq!((groups.most_tokens(11, 64), groups.most_tokens(12, 64)), (11 * 16, usize::MAX));
    }
}
