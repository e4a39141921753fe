//! [`Submitted`]: a request in the engine's hands, and its events as they come.

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{BoxStream, StreamExt, iter, unfold};
use sconce::{AnswerReader, CompletionOutput, Error, GenerationRequest, StreamEvent, TokenStream};

use crate::http::{ApiError, Exchange};
use crate::state::Served;

/// The events of one request. Dropping it cancels the request. The last item is `Done` or an error.
pub(super) type Events = BoxStream<'static, Result<StreamEvent, Error>>;

/// A request in the engine's hands.
pub(super) struct Submitted {
    /// The prompt's text, as far as it can be told.
    pub prompt_text: String,
    /// The prompt's tokens.
    pub prompt_token_ids: Vec<u32>,
    /// Sequences that will be answered.
    pub num_sequences: usize,
    /// Reads an answer from its beginning.
    pub answer_reader: AnswerReader,
    /// What the engine answers.
    pub events: Events,
}

/// Hands `request` to the engine. Tokenizing can take a while, which must not hold up other connections. Errors about a grammar name
/// `grammar_field`.
pub(super) async fn submit(
    exchange: &Arc<Exchange>,
    served: &Arc<Served>,
    request: GenerationRequest,
    grammar_field: Option<&'static str>,
) -> Result<Submitted, ApiError> {
    submit_with(exchange, served, request, grammar_field, Snapshots::Skipped).await
}

/// Whether the best so far are wanted before the answer, where they are what the engine tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snapshots {
    Wanted,
    Skipped,
}

/// The same, with snapshots or without.
pub(super) async fn submit_with(
    exchange: &Arc<Exchange>,
    served: &Arc<Served>,
    request: GenerationRequest,
    grammar_field: Option<&'static str>,
    snapshots: Snapshots,
) -> Result<Submitted, ApiError> {
    let served = served.clone();
    let skip_special_tokens = request.params.skip_special_tokens;
    let submitted = blocking(move || {
        let stream = served.engine.stream(request).map_err(|error| named(error, grammar_field))?;
        if snapshots == Snapshots::Skipped {
            stream.skip_snapshots();
        }
        let prompt_token_ids = stream.prompt_token_ids().to_vec();
        let prompt_text = match stream.prompt_text() {
            Some(text) => text.to_owned(),
            None => served.engine.handle().tokenizer().decode(&prompt_token_ids, skip_special_tokens),
        };
        Ok::<_, Error>((stream, prompt_text, prompt_token_ids))
    });
    let (stream, prompt_text, prompt_token_ids) = submitted.await?;
    let (num_sequences, answer_reader) = (stream.num_sequences(), stream.answer_reader().clone());
    let events = events(stream, Meter::new(exchange.clone()));
    let events = events.map(move |event| event.map_err(|error| named(error, grammar_field))).boxed();
    Ok(Submitted { prompt_text, prompt_token_ids, num_sequences, answer_reader, events })
}

/// An error about a grammar, of which the engine knows no more than that it is one, under the name of the request's field.
fn named(error: Error, grammar_field: Option<&'static str>) -> Error {
    match (error, grammar_field) {
        (Error::InvalidRequest { param, message }, Some(field)) if param == "grammar" => {
            let rest = message.strip_prefix("grammar").unwrap_or(&message);
            Error::invalid(field, format!("{field}{rest}"))
        }
        (error, _) => error,
    }
}

/// Runs `work` where it may take its time. A panic in it is the request's error and nobody else's.
pub(super) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(E::into),
        Err(e) => Err(Error::internal(e.to_string()).into()),
    }
}

fn events(stream: TokenStream, meter: Meter) -> Events {
    let state = Some((stream, meter));
    unfold(state, |state| async {
        let (mut stream, mut meter) = state?;
        let event = stream.next().await.unwrap_or_else(|| Err(Error::internal("the engine left a request unanswered")));
        let is_last = match &event {
            Ok(StreamEvent::Token(token)) => {
                meter.tokens(token.index, token.token_ids.len());
                false
            }
            Ok(StreamEvent::Best(outputs)) => {
                meter.best(outputs);
                false
            }
            Ok(event) => matches!(event, StreamEvent::Done(_)),
            Err(_) => true,
        };
        Some((event, (!is_last).then_some((stream, meter))))
    })
    .boxed()
}

/// The same events where sequences are replaced as a whole: only what stays in the end, as if it came all at once. For
/// forms that can add to what they have sent and not take it back.
pub(super) fn deltas(events: Events) -> Events {
    let mut answer = Vec::new();
    let delta = move |event| match event {
        Ok(StreamEvent::Best(outputs)) => {
            answer = outputs;
            Vec::new()
        }
        Ok(StreamEvent::Done(usage)) => {
            let whole = std::mem::take(&mut answer).into_iter().map(|o| Ok(StreamEvent::Token(o.into())));
            whole.chain([Ok(StreamEvent::Done(usage))]).collect()
        }
        event => vec![event],
    };
    events.map(delta).flat_map(iter).boxed()
}

/// Measures when tokens come.
struct Meter {
    exchange: Arc<Exchange>,
    /// When each sequence last grew.
    last: Vec<Option<Instant>>,
    /// Tokens of the best, where they are sent as a whole.
    num_best_tokens: usize,
}

impl Meter {
    fn new(exchange: Arc<Exchange>) -> Self {
        Self { exchange, last: Vec::new(), num_best_tokens: 0 }
    }

    /// The best so far stand for what was sent before.
    fn best(&mut self, outputs: &[CompletionOutput]) {
        let num_tokens: usize = outputs.iter().map(|o| o.token_ids.len()).sum();
        let before = std::mem::replace(&mut self.num_best_tokens, num_tokens);
        self.tokens(0, num_tokens.saturating_sub(before));
    }

    fn tokens(&mut self, index: usize, num_tokens: usize) {
        if num_tokens == 0 {
            return;
        }
        self.exchange.add_tokens(num_tokens);
        if self.last.is_empty() {
            self.exchange.state.metrics.first_token.observe(self.exchange.start.elapsed());
        }
        if self.last.len() <= index {
            self.last.resize(index + 1, None);
        }
        let now = Instant::now();
        if let Some(last) = self.last[index].replace(now) {
            self.exchange.state.metrics.inter_token.observe(now - last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_grammar_is_said_of_its_field() {
        let error = |param: &'static str| Error::invalid(param, format!("{param}: is wrong"));
        let check = |param, field, expected: &str| {
            let error = named(error(param), field);
            assert_eq!((error.to_string(), error.param()), (format!("{expected}: is wrong"), Some(expected)));
        };
        check("grammar", Some("guided_regex"), "guided_regex");
        check("top_p", Some("guided_regex"), "top_p");
        check("grammar", None, "grammar");
    }
}
