//! Cross-origin requests: which pages of other servers may read the answers.

use hyper::HeaderMap;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue, ORIGIN, VARY,
};

/// Adds to `response` what lets a page of one of the `allowed` origins read it. `*` allows every page.
pub(super) fn allow(allowed: &[String], origin: Option<&HeaderValue>, response: &mut HeaderMap) {
    if allowed.is_empty() {
        return;
    }
    if allowed.iter().any(|a| a == "*") {
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    } else {
        response.insert(VARY, HeaderValue::from_static("origin"));
        match origin {
            Some(origin) if allowed.iter().any(|a| origin == a.as_str()) => {
                response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            }
            _ => return,
        }
    }
    response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
}

/// Whether a request may make the server work: one that a page of another site sends only where the page's origin is among the
/// `allowed`. Browsers say so of it, and send simple requests without asking first.
pub(super) fn may_post(allowed: &[String], request: &HeaderMap) -> bool {
    let is_foreign = request.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    let is_allowed = |origin: &HeaderValue| allowed.iter().any(|a| a == "*" || origin == a.as_str());
    !is_foreign || request.get(ORIGIN).is_some_and(is_allowed)
}

/// Adds to the answer of a preflight what the page may send: the methods, and whatever headers it asked for.
pub(super) fn preflight(methods: &'static str, request: &HeaderMap, response: &mut HeaderMap) {
    response.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    if let Some(headers) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        response.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
    }
    response.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}
