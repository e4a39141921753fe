//! `POST /v1/completions`: OpenAI's older form, for one prompt or several.

use std::sync::Arc;

use hyper::Response;
use sconce::{FinishReason, StreamEvent, TokenLogprobs, Usage};
use serde_json::{Value, json};

use super::events::{Submitted, deltas, submit};
use super::growing::Grown;
use super::logprobs::{self, CompletionLogprobs, IsSpecial, TokenBytes, is_special, token_bytes};
use super::stream::{Encoder, Whole, stream, whole};
use super::{Head, add_usage, usage_json};
use crate::http::{self, ApiError, Body, Exchange, Json, List, Pieces};
use crate::state::Served;
use crate::wire::WireRequest;

/// Answers one request.
pub(super) async fn answer(
    exchange: &Arc<Exchange>,
    served: &Arc<Served>,
    mut request: WireRequest,
) -> Result<Response<Body>, ApiError> {
    let (num_prompts, most) = (request.num_requests(), served.engine.handle().max_requests());
    if num_prompts > most {
        let message = format!("prompt: at most {most} prompts are taken at once, found {num_prompts}");
        return Err(ApiError::invalid("prompt", message));
    }
    let form = Form {
        head: Head::new(exchange, served, &mut request),
        echo: request.echo,
        has_logprobs: request.params.logprobs.is_some(),
        n: request.params.n,
        token_bytes: token_bytes(served),
        is_special: is_special(served),
        skips_special: request.params.skip_special_tokens,
    };
    let mut submitted = Vec::new();
    // All are in the engine's hands before the first is waited for, so that they run together.
    let grammar_field = request.grammar_field();
    for request in request.take_requests() {
        submitted.push(submit(exchange, served, request, grammar_field).await?);
    }
    if request.stream {
        let chunks = Chunks::new(form, &submitted, request.stream_usage == Some(true));
        return Ok(stream(submitted.into_iter().map(|s| deltas(s.events)).collect(), chunks));
    }
    let (mut prompts, mut events) = (Vec::new(), Vec::new());
    for submitted in submitted {
        prompts.push(WholePrompt {
            answer: Grown::new(submitted.num_sequences, form.logprobs()),
            prompt_logprobs: None,
            text: submitted.prompt_text,
            token_ids: submitted.prompt_token_ids,
        });
        events.push(submitted.events);
    }
    whole(events, WholeCompletion { form, prompts }).await
}

/// The answer that comes whole.
struct WholeCompletion {
    form: Form,
    prompts: Vec<WholePrompt>,
}

struct WholePrompt {
    text: String,
    token_ids: Vec<u32>,
    answer: Grown<CompletionLogprobs>,
    prompt_logprobs: Option<List>,
}

impl Whole for WholeCompletion {
    fn event(&mut self, prompt: usize, event: StreamEvent) {
        let Self { form, prompts } = self;
        let WholePrompt { text, token_ids, answer, prompt_logprobs } = &mut prompts[prompt];
        // They come before any token.
        if let StreamEvent::PromptLogprobs(logprobs) = &event {
            *prompt_logprobs = Some(logprobs::of_prompt(&form.token_bytes, logprobs));
            if form.echo {
                *answer = Grown::new(answer.num_sequences(), form.echoed(text, token_ids, logprobs));
            }
        }
        answer.apply(event);
    }

    fn end(self) -> Json {
        let mut usage = Usage::default();
        let mut choices = Vec::new();
        for (i, prompt) in self.prompts.iter().enumerate() {
            usage = add_usage(usage, prompt.answer.output.usage);
            let mut sequences: Vec<_> = prompt.answer.sequences().collect();
            sequences.sort_by_key(|(output, _)| output.index);
            for (output, logprobs) in sequences {
                let prefix = if self.form.echo { prompt.text.as_str() } else { "" };
                let text = prefix.to_owned() + &output.text;
                let logprobs = self.form.has_logprobs.then(|| logprobs.json());
                let finish = output.finish.as_ref().map(|f| f.reason);
                let mut choice = choice(i * self.form.n + output.index, &text, logprobs, finish);
                if let Some(prompt_logprobs) = &prompt.prompt_logprobs {
                    choice.set("prompt_logprobs", prompt_logprobs);
                }
                choices.push(choice);
            }
        }
        self.form.head.openai("text_completion", choices).with("usage", usage_json(usage))
    }
}

/// What a choice needs besides the sequence.
pub(super) struct Form {
    pub head: Head,
    pub echo: bool,
    pub has_logprobs: bool,
    pub n: usize,
    pub token_bytes: TokenBytes,
    pub is_special: IsSpecial,
    pub skips_special: bool,
}

impl Form {
    fn logprobs(&self) -> CompletionLogprobs {
        CompletionLogprobs::new(self.token_bytes.clone(), self.is_special.clone(), self.skips_special)
    }

    /// Those of an answer that begins with its prompt.
    fn echoed(&self, text: &str, token_ids: &[u32], prompt_logprobs: &[Option<TokenLogprobs>]) -> CompletionLogprobs {
        let mut logprobs = self.logprobs();
        for (position, &token_id) in prompt_logprobs.iter().zip(token_ids) {
            logprobs.push_prompt(text, token_id, position.as_ref());
        }
        logprobs
    }
}

fn choice(index: usize, text: &str, logprobs: Option<Json>, finish: Option<FinishReason>) -> Json {
    let mut choice = Json::from(json!({
        "index": index,
        "text": text,
        "logprobs": null,
        "finish_reason": finish.map(FinishReason::as_str),
    }));
    if let Some(logprobs) = logprobs {
        choice.set("logprobs", logprobs);
    }
    choice
}

/// The streamed form.
pub(super) struct Chunks {
    form: Form,
    /// One a prompt.
    prompts: Vec<PromptChunks>,
    include_usage: bool,
    usage: Usage,
}

struct PromptChunks {
    text: String,
    token_ids: Vec<u32>,
    /// What a sequence begins with.
    begun: CompletionLogprobs,
    /// One a sequence, once it has begun.
    sequences: Vec<Option<CompletionLogprobs>>,
}

impl Chunks {
    pub(super) fn new(form: Form, submitted: &[Submitted], include_usage: bool) -> Self {
        let prompt = |s: &Submitted| PromptChunks {
            text: s.prompt_text.clone(),
            token_ids: s.prompt_token_ids.clone(),
            begun: form.logprobs(),
            sequences: (0..s.num_sequences).map(|_| None).collect(),
        };
        Self { prompts: submitted.iter().map(prompt).collect(), form, include_usage, usage: Usage::default() }
    }

    fn write(&self, choices: Vec<Json>, out: &mut Pieces) {
        let mut chunk = self.form.head.openai("text_completion", choices);
        if self.include_usage {
            chunk.set("usage", Value::Null);
        }
        http::event(&chunk, out);
    }
}

impl Encoder for Chunks {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn event(&mut self, prompt_index: usize, event: StreamEvent, out: &mut Pieces) {
        let prompt = &mut self.prompts[prompt_index];
        let token = match event {
            StreamEvent::PromptLogprobs(logprobs) => {
                if self.form.echo {
                    prompt.begun = self.form.echoed(&prompt.text, &prompt.token_ids, &logprobs);
                }
                return;
            }
            StreamEvent::Best(_) => return, // made deltas before
            StreamEvent::Done(usage) => return self.usage = add_usage(self.usage, usage),
            StreamEvent::Token(token) => token,
        };
        let mut text = token.text;
        let logprobs = prompt.sequences[token.index].get_or_insert_with(|| {
            if self.form.echo {
                text.insert_str(0, &prompt.text);
            }
            prompt.begun.clone()
        });
        token.logprobs.iter().for_each(|l| logprobs.push(l));
        // Text that is held back makes no chunk; logprobs of its tokens do.
        if text.is_empty() && token.logprobs.is_empty() && token.finish.is_none() {
            return;
        }
        let logprobs = self.form.has_logprobs.then(|| logprobs.take());
        let index = prompt_index * self.form.n + token.index;
        let choice = choice(index, &text, logprobs, token.finish.map(|f| f.reason));
        self.write(vec![choice], out);
    }

    fn end(&mut self, out: &mut Pieces) {
        if self.include_usage {
            let mut chunk = self.form.head.openai("text_completion", Vec::new());
            chunk.set("usage", usage_json(self.usage));
            http::event(&chunk, out);
        }
        out.push(http::DONE);
    }

    fn error(&mut self, error: &ApiError, out: &mut Pieces) {
        http::event(&error.to_json().into(), out);
    }
}
