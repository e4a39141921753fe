//! [`Events`]: the streamed form. Each event has a type, which names it too, and a number.

use sconce::{StreamEvent, Usage};
use serde_json::json;

use super::output::Output;
use super::{Form, status};
use crate::api::stream::Encoder;
use crate::http::{self, ApiError, Json, Pieces};

/// The streamed form of a response.
pub(super) struct Events {
    form: Form,
    /// There until the end.
    output: Option<Output>,
    usage: Usage,
    /// How many events there have been.
    num_events: usize,
}

impl Events {
    pub(super) fn new(form: Form, output: Output) -> Self {
        Self { form, output: Some(output), usage: Usage::default(), num_events: 0 }
    }

    fn write(&mut self, kind: &str, event: Json, out: &mut Pieces) {
        let event = event.with("sequence_number", json!(self.num_events));
        self.num_events += 1;
        http::named_event(kind, &event, out);
    }

    /// An event about the response as a whole.
    fn write_response(&mut self, kind: &str, response: Json, out: &mut Pieces) {
        let kind = format!("response.{kind}");
        self.write(&kind, Json::from(json!({"type": kind})).with("response", response), out);
    }
}

impl Encoder for Events {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, out: &mut Pieces) {
        for kind in ["created", "in_progress"] {
            let response = self.form.response("in_progress", Vec::new());
            self.write_response(kind, response, out);
        }
    }

    fn event(&mut self, _prompt: usize, event: StreamEvent, out: &mut Pieces) {
        let told = match (event, &mut self.output) {
            (StreamEvent::Token(token), Some(output)) => output.push(&token),
            (StreamEvent::Done(usage), _) => return self.usage = usage,
            // The former are not asked for, the latter made deltas before.
            (StreamEvent::PromptLogprobs(_) | StreamEvent::Best(_) | StreamEvent::Token(_), _) => return,
        };
        told.into_iter().for_each(|told| self.write(&told.kind, told.event, out));
    }

    fn end(&mut self, out: &mut Pieces) {
        let Some(output) = self.output.take() else { return };
        // A response that was cancelled has no event of its own.
        let kind = if status(output.finish()) == "completed" { "completed" } else { "incomplete" };
        let response = self.form.ended(output, self.usage);
        self.write_response(kind, response, out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Pieces) {
        let Some(output) = self.output.take() else { return };
        let response = self.form.failed(output, error);
        self.write_response("failed", response, out);
    }
}
