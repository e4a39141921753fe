pub struct StopMatcher {}
pub struct StopMatch { pub text: String /* which stop string */ }
impl StopMatcher {
    pub fn new(stops: &[String], include_stop_str_in_output: bool) -> Self;
    /// Adds text; appends what can be shown to `out`. Returns the match that ended the sequence, if one did: `out` then
    /// holds everything before it (and the stop text itself if it is to be included), and nothing more may be pushed.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<StopMatch>;
    /// The sequence ended otherwise: appends what was held back.
    pub fn finish(&mut self, out: &mut String);
}
