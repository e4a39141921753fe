//! [`StopMatcher`]: ends a sequence at a stop text, and never shows the beginning of one.

#[cfg(test)]
mod tests;

use std::sync::Arc;

/// Finds stop texts in a stream of text.
///
/// The stop text that ends first ends the sequence; of several that end there, the longest. What could still be the
/// beginning of a stop text is held back, and nothing more. The work is linear in the text for each stop text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    include: bool,
    /// Text seen but not shown: the longest end of the text that is the beginning of a stop text.
    held: String,
    stopped: bool,
}

/// One stop text, searched for as Knuth, Morris and Pratt do. Clones share the text: sequences fork.
#[derive(Debug, Clone)]
struct Pattern {
    text: Arc<str>,
    /// `fallback[k]`: length of the longest proper beginning of `text[..=k]` that is also its end.
    fallback: Arc<[usize]>,
    /// How many bytes of `text` the stream ends with.
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut fallback = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = fallback[matched - 1];
            }
            matched += usize::from(bytes[at] == bytes[matched]);
            fallback[at] = matched;
        }
        Self { text: text.into(), fallback: fallback.into(), matched: 0 }
    }

    /// Takes the next byte of the stream; true if the stream now ends with the whole text.
    fn step(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        self.matched == bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for `stops`; `include` keeps the stop text in the output. Empty stop texts stop nothing.
    pub fn new(stops: &[String], include: bool) -> Self {
        let patterns = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| Pattern::new(stop)).collect();
        Self { patterns, include, held: String::new(), stopped: false }
    }

    /// Adds text and appends to `out` what can be shown. Returns the stop text that ended the sequence, if one did:
    /// `out` then holds everything before it (and the stop text itself if it is to be included). Text after a stop
    /// text is dropped, in the same call and in later ones.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<String> {
        if self.stopped {
            return None;
        }
        let seen = self.held.len();
        self.held.push_str(text);
        for at in seen..self.held.len() {
            let byte = self.held.as_bytes()[at];
            let ended = self.patterns.iter_mut().enumerate().filter_map(|(index, pattern)| {
                let ended = pattern.step(byte);
                ended.then_some((pattern.text.len(), index))
            });
            if let Some((_, index)) = ended.max() {
                return Some(self.stop(index, at + 1, out));
            }
        }
        // A stop text is whole characters, so a beginning of one that ends where the text ends starts at a character.
        let keep = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - keep));
        None
    }

    fn stop(&mut self, index: usize, end: usize, out: &mut String) -> String {
        let stop = String::from(&*self.patterns[index].text);
        let shown = if self.include { end } else { end - stop.len() };
        out.push_str(&self.held[..shown]);
        self.held.clear();
        self.stopped = true;
        stop
    }

    /// The sequence ended otherwise: appends to `out` what was held back.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.stopped = true;
    }
}
