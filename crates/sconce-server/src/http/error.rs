//! [`ApiError`]: an error as the API spells it, with its HTTP status.

use hyper::header::HeaderValue;
use hyper::{Response, StatusCode};
use sconce::ErrorKind;
use serde_json::{Value, json};

use super::body::{self, Body};

/// An error, answered as `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug)]
pub struct ApiError {
    /// The status of the answer, where none has been sent yet.
    pub status: StatusCode,
    /// What was expected and what was found.
    pub message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
    header: Option<(&'static str, &'static str)>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: None, header: None }
    }

    fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    /// 400: the field `param` is wrong.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_body(message).with_param(param)
    }

    /// 400: the body as a whole is wrong.
    pub fn bad_body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// The same where the field `name`, or what is in it, goes by `other`.
    pub fn renamed(mut self, name: &str, other: &str) -> Self {
        let rest = self.param.as_deref().and_then(|param| param.strip_prefix(name));
        match rest.map(|rest| rest.bytes().next()) {
            Some(None) => {
                let message = self.message.strip_prefix(name).map(|rest| format!("{other}{rest}"));
                self.message = message.unwrap_or(self.message);
            }
            // Where it is in the one is not where it is in the other.
            Some(Some(b'[' | b'.')) => self.message = format!("{other}: {}", self.message),
            _ => return self,
        }
        self.param = Some(other.to_owned());
        self
    }

    /// 401: the API key is missing or wrong.
    pub fn unauthorized() -> Self {
        let message = "this server needs an API key: send it as \"Authorization: Bearer KEY\"";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
            .with_code("invalid_api_key")
            .with_header("www-authenticate", "Bearer")
    }

    /// 403: a page of another site that may not.
    pub fn foreign_page() -> Self {
        let message = "pages of other sites may not use this server: allow theirs by --cors-allow-origin ORIGIN";
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// 404: no such path.
    pub fn no_such_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", format!("no such path: {path}"))
    }

    /// 404: no such model. `served` are the names that exist.
    pub fn no_such_model(name: &str, served: &[&str]) -> Self {
        let message = format!("model: {name:?} is not served here; served are: {}", served.join(", "));
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
            .with_param("model")
            .with_code("model_not_found")
    }

    /// 405: the path takes `allowed`, and that is all.
    pub fn method_not_allowed(path: &str, allowed: &'static str) -> Self {
        let message = format!("{path} takes {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message).with_header("allow", allowed)
    }

    /// 408: the body did not arrive in time.
    pub fn timeout(limit: std::time::Duration) -> Self {
        let message = format!("the body did not arrive within {} s", limit.as_secs_f64());
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message).with_header("connection", "close")
    }

    /// 413: the body is larger than `limit_bytes`.
    pub fn too_large(limit_bytes: usize) -> Self {
        let message = format!("the body is larger than the limit of {limit_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).with_header("connection", "close")
    }

    /// 415: the body is compressed.
    pub fn encoded(encoding: &HeaderValue) -> Self {
        let message = format!("Content-Encoding {encoding:?} is not supported: send the body as it is");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    /// 503: models are still being loaded.
    pub fn loading() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "the model is still loading")
            .with_code("loading")
            .with_header("retry-after", "5")
    }

    /// 503: the server is about to end.
    pub fn draining() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "the server is shutting down")
            .with_code("draining")
            .with_header("retry-after", "5")
    }

    /// 500: a bug. The cause goes to the log, not to the client.
    pub fn internal() -> Self {
        let message = "internal error: the server's log has the cause";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// The JSON form.
    pub fn to_json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    /// The whole answer.
    pub fn into_response(self) -> Response<Body> {
        let mut response = body::json(self.status, &self.to_json());
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

impl From<sconce::Error> for ApiError {
    fn from(error: sconce::Error) -> Self {
        let message = error.to_string();
        match error.kind() {
            ErrorKind::InvalidRequest => {
                let param = error.param().map(str::to_owned);
                Self { param, ..Self::bad_body(message) }
            }
            ErrorKind::Overloaded => Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded_error", message)
                .with_code("overloaded")
                .with_header("retry-after", "1"),
            ErrorKind::Unavailable => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", message)
                .with_code("unavailable")
                .with_header("retry-after", "5"),
            _ => {
                tracing::error!("{message}");
                Self::internal()
            }
        }
    }
}
