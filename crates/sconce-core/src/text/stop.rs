//! [`StopMatcher`]: ends a sequence at a stop text, and never shows the beginning of one.

/// Finds stop texts in a stream of text.
pub struct StopMatcher {}

impl StopMatcher {
    /// A matcher for `stops`; `include` keeps the stop text in the output.
    pub fn new(stops: &[String], include: bool) -> Self {
        todo!()
    }
    /// Adds text and appends to `out` what can be shown. Returns the stop text that ended the sequence, if one did:
    /// `out` then holds everything before it (and the stop text itself if it is to be included).
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<String> {
        todo!()
    }
    /// The sequence ended otherwise: appends to `out` what was held back.
    pub fn finish(&mut self, out: &mut String) {
        todo!()
    }
}
