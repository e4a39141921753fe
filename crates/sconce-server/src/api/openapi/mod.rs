//! `GET /openapi.json`: the API as an OpenAPI 3.1 document, made of the table of fields and of the tables here.

mod answers;
mod responses;

#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::http::{self, Body};
use crate::wire::Schema::{self, AllOf, AnyOf, List, Ref};
use crate::wire::{Endpoint, OBJECTS, body};

const ABOUT: &str = "A field that is unknown, of the wrong type or out of range is refused with an error that names it; null \
    means absent. What takes GET takes HEAD, and every path OPTIONS. Where the server has an API key, it is asked for.";

const JSON: &str = "application/json";
const HTML: &str = "text/html";
const TEXT: &str = "text/plain";
const EVENTS: &str = "text/event-stream";
const RECORDS: &str = "application/octet-stream";

/// What is done at a path.
struct Operation {
    path: &'static str,
    /// In a few words.
    summary: &'static str,
    /// Its body; absent where it is a GET.
    endpoint: Option<Endpoint>,
    /// What it answers with 200.
    answer: Answer,
    /// What else it may answer, but 401.
    errors: &'static [u16],
}

/// The body of an answer.
#[derive(Clone, Copy)]
enum Answer {
    /// JSON.
    Json(Schema),
    /// JSON, or with `stream` this content type, made of that.
    Streamed(Schema, &'static str, Schema),
    /// Something else.
    Other(&'static str),
}

const RECORD: Schema = AnyOf(&[Ref("GenerateRecord"), Ref("Error")]);
const COMPLETION_CHUNK: Schema = AnyOf(&[Ref("CompletionChunk"), Ref("Error")]);
const CHAT_CHUNK: Schema = AnyOf(&[Ref("ChatCompletionChunk"), Ref("Error")]);
const RESPONSE_EVENT: Schema = AnyOf(responses::EVENTS);
const SERVER_INFO: Schema = AllOf(&[Ref("ModelInfo"), Ref("ServerInfo")]);
const LOADS: Schema = List(&Ref("Load"), 0, usize::MAX);

/// What every operation with a body may answer.
const OF_BODIES: &[u16] = &[400, 403, 404, 408, 413, 415, 500, 503];
/// The same where the model computes.
const OF_GENERATION: &[u16] = &[400, 403, 404, 408, 413, 415, 429, 500, 503];

#[rustfmt::skip]
const OPERATIONS: &[Operation] = &[
    post(Endpoint::Generate, "Continue a prompt or answer a conversation", OF_GENERATION,
        Answer::Streamed(Ref("GenerateAnswer"), RECORDS, RECORD)),
    post(Endpoint::Completions, "Continue prompts, in OpenAI's form", OF_GENERATION,
        Answer::Streamed(Ref("Completion"), EVENTS, COMPLETION_CHUNK)),
    post(Endpoint::Chat, "Answer a conversation, in OpenAI's form", OF_GENERATION,
        Answer::Streamed(Ref("ChatCompletion"), EVENTS, CHAT_CHUNK)),
    post(Endpoint::Responses, "Answer a conversation, in OpenAI's newer form", OF_GENERATION,
        Answer::Streamed(Ref("Response"), EVENTS, RESPONSE_EVENT)),
    post(Endpoint::Embeddings, "Vectors of texts, in OpenAI's form", OF_GENERATION, Answer::Json(Ref("Embeddings"))),
    post(Endpoint::Tokenize, "Token ids of a prompt or a conversation", OF_BODIES, Answer::Json(Ref("Tokens"))),
    post(Endpoint::Detokenize, "Text of token ids", OF_BODIES, Answer::Json(Ref("DecodedText"))),
    get("/v1/models", "The served models", &[503], Answer::Json(Ref("Models"))),
    get("/v1/models/{id}", "One served model", &[404, 503], Answer::Json(Ref("Model"))),
    get("/health", "Whether requests are answered", &[503], Answer::Json(Ref("Health"))),
    get("/version", "The program's version", &[], Answer::Json(Ref("Version"))),
    get("/metrics", "Counters for Prometheus", &[], Answer::Other(TEXT)),
    get("/server_info", "How the server runs", &[503], Answer::Json(SERVER_INFO)),
    get("/get_server_info", "The older name of /server_info", &[503], Answer::Json(SERVER_INFO)),
    get("/model_info", "What the first model is", &[503], Answer::Json(Ref("ModelInfo"))),
    get("/get_model_info", "The older name of /model_info", &[503], Answer::Json(Ref("ModelInfo"))),
    get("/get_load", "How much each model has to do", &[503], Answer::Json(LOADS)),
    get("/openapi.json", "This document", &[], Answer::Json(Schema::Any)),
    get("/", "The playground, a page for browsers", &[], Answer::Other(HTML)),
];

/// Statuses other than 200, and when they come.
const ERRORS: &[(u16, &str)] = &[
    (400, "The body is not what it should be; `param` names the field."),
    (401, "The API key is missing or wrong."),
    (403, "The request is of a page of another site, which is not allowed."),
    (404, "No model of this name is served."),
    (408, "The body did not arrive in time."),
    (413, "The body is too large."),
    (415, "The body is compressed."),
    (429, "As many requests as the engine holds are under way: to be asked again."),
    (500, "An error of the server, which its log explains."),
    (503, "The models are still loading, or the server is about to end: to be asked again."),
];

const fn post(endpoint: Endpoint, summary: &'static str, errors: &'static [u16], answer: Answer) -> Operation {
    Operation { path: endpoint.path(), summary, endpoint: Some(endpoint), answer, errors }
}

const fn get(path: &'static str, summary: &'static str, errors: &'static [u16], answer: Answer) -> Operation {
    Operation { path, summary, endpoint: None, answer, errors }
}

/// The document.
pub fn openapi() -> Response<Body> {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
    http::json(StatusCode::OK, &DOCUMENT)
}

fn document() -> Value {
    let paths: Map<String, Value> = OPERATIONS.iter().map(|o| (o.path.to_owned(), o.to_json())).collect();
    let objects = OBJECTS.iter().chain(answers::OBJECTS).chain(responses::OBJECTS);
    let bodies = Endpoint::ALL.iter().map(|&endpoint| (body_name(endpoint), body(endpoint)));
    let schemas: Map<String, Value> = bodies.chain(objects.map(|o| (o.name.to_owned(), o.to_json()))).collect();
    let responses: Map<String, Value> = ERRORS.iter().map(|e| (e.0.to_string(), error(e))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sconce",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

/// The name of the schema of an endpoint's bodies.
fn body_name(endpoint: Endpoint) -> String {
    format!("{endpoint:?}Request")
}

fn error((status, description): &(u16, &str)) -> Value {
    let mut json = json!({"description": description, "content": {JSON: {"schema": Ref("Error").to_json()}}});
    if matches!(status, 429 | 503) {
        let description = "Seconds after which to ask again.";
        json["headers"] = json!({"retry-after": {"description": description, "schema": {"type": "integer"}}});
    }
    json
}

impl Operation {
    fn to_json(&self) -> Value {
        let is_open = http::is_open(self.path);
        let mut operation = json!({
            "operationId": self.id(),
            "summary": self.summary,
            "responses": {"200": {"description": self.summary, "content": self.answer.content()}},
        });
        if is_open {
            operation["security"] = json!([]);
        }
        if self.path.ends_with("{id}") {
            let name = "A model's name, where / may be written as %2F.";
            let schema = json!({"type": "string"});
            operation["parameters"] =
                json!([{"name": "id", "in": "path", "required": true, "description": name, "schema": schema}]);
        }
        if let Some(endpoint) = self.endpoint {
            let schema = json!({"$ref": format!("#/components/schemas/{}", body_name(endpoint))});
            operation["requestBody"] = json!({"required": true, "content": {JSON: {"schema": schema}}});
        }
        for &status in self.errors.iter().chain((!is_open).then_some(&401)) {
            operation["responses"][status.to_string()] = match self.path {
                "/health" => json!({"description": "They are not.", "content": self.answer.content()}),
                _ => json!({"$ref": format!("#/components/responses/{status}")}),
            };
        }
        let method = if self.endpoint.is_some() { "post" } else { "get" };
        json!({method: operation})
    }

    /// The path's words.
    fn id(&self) -> String {
        match self.path {
            "/" => "playground".to_owned(),
            path => {
                let words = path.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
                words.collect::<Vec<_>>().join("_")
            }
        }
    }
}

impl Answer {
    fn content(self) -> Value {
        match self {
            Self::Json(schema) => json!({JSON: {"schema": schema.to_json()}}),
            Self::Other(content_type) => json!({content_type: {"schema": {"type": "string"}}}),
            Self::Streamed(schema, content_type, part) => {
                let framing = if content_type == EVENTS {
                    "With stream: server-sent events, each such an object; behind the last comes [DONE], but at /v1/responses."
                } else {
                    "With stream: such objects, each followed by a zero byte; each holds all of the answer so far."
                };
                let streamed = json!({
                    "type": "string",
                    "description": framing,
                    "contentMediaType": JSON,
                    "contentSchema": part.to_json(),
                });
                json!({JSON: {"schema": schema.to_json()}, content_type: {"schema": streamed}})
            }
        }
    }
}
