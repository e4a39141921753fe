//! `POST /v1/completions`: OpenAI's older form, for one prompt or several.

use std::sync::Arc;

use futures_util::future::try_join_all;
use hyper::{Response, StatusCode};
use sconce::{CompletionOutput, FinishReason, StreamEvent, TokenLogprobs, Usage};
use serde_json::{Value, json};

use super::events::{Submitted, collect, deltas, submit};
use super::logprobs::{self, CompletionLogprobs, IsSpecial, TokenBytes, is_special, token_bytes};
use super::stream::{Encoder, stream};
use super::{Head, add_usage, usage_json};
use crate::http::{self, ApiError, Body, Exchange};
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
    let answers = try_join_all(submitted.into_iter().map(collect)).await?;
    let mut usage = Usage::default();
    let mut choices = Vec::new();
    for (prompt, (submitted, mut output)) in answers.into_iter().enumerate() {
        usage = add_usage(usage, output.usage);
        output.outputs.sort_by_key(|o| o.index);
        for sequence in output.outputs {
            let mut choice = form.choice(prompt, &submitted, &sequence, output.prompt_logprobs.as_deref());
            if let Some(prompt_logprobs) = &output.prompt_logprobs {
                choice["prompt_logprobs"] = logprobs::of_prompt(&form.token_bytes, prompt_logprobs);
            }
            choices.push(choice);
        }
    }
    let mut answer = form.head.openai("text_completion", choices);
    answer["usage"] = usage_json(usage);
    Ok(http::json(StatusCode::OK, &answer))
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

    fn choice(
        &self,
        prompt: usize,
        submitted: &Submitted,
        sequence: &CompletionOutput,
        prompt_logprobs: Option<&[Option<TokenLogprobs>]>,
    ) -> Value {
        let mut text = sequence.text.clone();
        let mut logprobs = self.logprobs();
        if self.echo {
            text.insert_str(0, &submitted.prompt_text);
            push_prompt(&mut logprobs, prompt_logprobs, &submitted.prompt_text, &submitted.prompt_token_ids);
        }
        sequence.logprobs.iter().for_each(|l| logprobs.push(l));
        let logprobs = if self.has_logprobs { logprobs.take() } else { Value::Null };
        let finish = sequence.finish.as_ref().map(|f| f.reason);
        choice(prompt * self.n + sequence.index, &text, logprobs, finish)
    }
}

fn choice(index: usize, text: &str, logprobs: Value, finish: Option<FinishReason>) -> Value {
    json!({
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish.map(FinishReason::as_str),
    })
}

fn push_prompt(
    logprobs: &mut CompletionLogprobs,
    prompt_logprobs: Option<&[Option<TokenLogprobs>]>,
    prompt_text: &str,
    prompt_token_ids: &[u32],
) {
    for (position, &token_id) in prompt_logprobs.unwrap_or_default().iter().zip(prompt_token_ids) {
        logprobs.push_prompt(prompt_text, token_id, position.as_ref());
    }
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
    logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// One a sequence, once it has begun.
    sequences: Vec<Option<CompletionLogprobs>>,
}

impl Chunks {
    pub(super) fn new(form: Form, submitted: &[Submitted], include_usage: bool) -> Self {
        let prompt = |s: &Submitted| PromptChunks {
            text: s.prompt_text.clone(),
            token_ids: s.prompt_token_ids.clone(),
            logprobs: None,
            sequences: (0..s.num_sequences).map(|_| None).collect(),
        };
        Self { prompts: submitted.iter().map(prompt).collect(), form, include_usage, usage: Usage::default() }
    }

    fn write(&self, choices: Vec<Value>, out: &mut Vec<u8>) {
        let mut chunk = self.form.head.openai("text_completion", choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        http::event(&chunk, out);
    }
}

impl Encoder for Chunks {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn event(&mut self, prompt_index: usize, event: StreamEvent, out: &mut Vec<u8>) {
        let prompt = &mut self.prompts[prompt_index];
        let token = match event {
            StreamEvent::PromptLogprobs(logprobs) => return prompt.logprobs = Some(logprobs),
            StreamEvent::Best(_) => return, // made deltas before
            StreamEvent::Done(usage) => return self.usage = add_usage(self.usage, usage),
            StreamEvent::Token(token) => token,
        };
        let mut text = token.text;
        let logprobs = prompt.sequences[token.index].get_or_insert_with(|| {
            let mut logprobs = self.form.logprobs();
            if self.form.echo {
                text.insert_str(0, &prompt.text);
                push_prompt(&mut logprobs, prompt.logprobs.as_deref(), &prompt.text, &prompt.token_ids);
            }
            logprobs
        });
        token.logprobs.iter().for_each(|l| logprobs.push(l));
        // Text that is held back makes no chunk; logprobs of its tokens do.
        if text.is_empty() && token.logprobs.is_empty() && token.finish.is_none() {
            return;
        }
        let logprobs = if self.form.has_logprobs { logprobs.take() } else { Value::Null };
        let index = prompt_index * self.form.n + token.index;
        let choice = choice(index, &text, logprobs, token.finish.map(|f| f.reason));
        self.write(vec![choice], out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            let mut chunk = self.form.head.openai("text_completion", Vec::new());
            chunk["usage"] = usage_json(self.usage);
            http::event(&chunk, out);
        }
        out.extend_from_slice(http::DONE);
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        http::event(&error.to_json(), out);
    }
}
