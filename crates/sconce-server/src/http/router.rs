//! [`answer`]: from a request to the function that answers it, and what every answer has in common.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, AUTHORIZATION, CONNECTION, HeaderValue, ORIGIN};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::body::{self, Body, read_body};
use super::cors;
use super::error::ApiError;
use super::exchange::Exchange;
use crate::api;
use crate::api::playground::{self, File};
use crate::state::{ApiKey, State};
use crate::wire::Endpoint;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Post(Endpoint),
    Models,
    Model,
    Health,
    Version,
    Metrics,
    ServerInfo,
    ModelInfo,
    Load,
    OpenApi,
    Playground(&'static File),
}

/// Every path but those of the playground, and what it leads to.
const ROUTES: &[(&str, Route)] = &[
    (Endpoint::Generate.path(), Route::Post(Endpoint::Generate)),
    (Endpoint::Completions.path(), Route::Post(Endpoint::Completions)),
    (Endpoint::Chat.path(), Route::Post(Endpoint::Chat)),
    (Endpoint::Responses.path(), Route::Post(Endpoint::Responses)),
    (Endpoint::Embeddings.path(), Route::Post(Endpoint::Embeddings)),
    (Endpoint::Tokenize.path(), Route::Post(Endpoint::Tokenize)),
    (Endpoint::Detokenize.path(), Route::Post(Endpoint::Detokenize)),
    ("/v1/models", Route::Models),
    ("/health", Route::Health),
    ("/version", Route::Version),
    ("/metrics", Route::Metrics),
    ("/server_info", Route::ServerInfo),
    ("/get_server_info", Route::ServerInfo),
    ("/model_info", Route::ModelInfo),
    ("/get_model_info", Route::ModelInfo),
    ("/get_load", Route::Load),
    ("/openapi.json", Route::OpenApi),
];

/// The one path that ends in a name.
const MODEL_PREFIX: &str = "/v1/models/";

impl Route {
    fn of(path: &str) -> Option<Self> {
        if path.len() > MODEL_PREFIX.len() && path.starts_with(MODEL_PREFIX) {
            return Some(Self::Model);
        }
        let route = ROUTES.iter().find(|(p, _)| *p == path).map(|&(_, route)| route);
        route.or_else(|| playground::file(path).map(Self::Playground))
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Post(_) => "POST, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }

    fn takes(self, method: &Method) -> bool {
        match self {
            Self::Post(_) => method == Method::POST,
            _ => method == Method::GET || method == Method::HEAD,
        }
    }

    /// Whether it answers without an API key.
    fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Version | Self::OpenApi | Self::Playground(_))
    }
}

/// Whether `path` answers without an API key.
pub fn is_open(path: &str) -> bool {
    Route::of(path).is_some_and(Route::is_open)
}

/// Every path but the one that ends in a name, and those of the playground.
#[cfg(test)]
pub(crate) fn paths() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().map(|(path, _)| *path)
}

/// The path as a metrics label: one of a few, whatever clients ask for.
pub(super) fn route_name(path: &str) -> &'static str {
    if path.starts_with(MODEL_PREFIX) {
        return "/v1/models/{id}";
    }
    let path_of_playground = || playground::file(path).map(|file| file.path);
    ROUTES.iter().find(|(p, _)| *p == path).map(|&(p, _)| p).or_else(path_of_playground).unwrap_or("other")
}

/// Answers one request.
pub async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let exchange = Exchange::new(state, &request);
    let state = exchange.state.clone();
    let origin = request.headers().get(ORIGIN).cloned();
    let mut response = respond(&exchange, request).await.unwrap_or_else(ApiError::into_response);
    let headers = response.headers_mut();
    if let Some(id) = exchange.header_id() {
        headers.insert("x-request-id", id);
    }
    cors::allow(&state.settings.cors_allow_origins, origin.as_ref(), headers);
    if state.drain.is_draining() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    exchange.set_status(response.status());
    // The exchange lasts as long as its answer's body.
    response.map(|body| body::holding(body, exchange))
}

async fn respond(exchange: &Arc<Exchange>, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let state = &exchange.state;
    let path = request.uri().path().to_owned();
    let route = match admit(state, &request) {
        Ok(route) => route,
        Err(error) => {
            body::refuse(request, &state.settings);
            return Err(error);
        }
    };
    if request.method() == Method::OPTIONS {
        return Ok(options(route, request.headers()));
    }
    match route {
        Route::Post(endpoint) => {
            let body = read_body(request, &state.settings).await?;
            api::post(exchange, endpoint, body).await
        }
        Route::Models => api::models::list(state),
        Route::Model => api::models::one(state, &path[MODEL_PREFIX.len()..]),
        Route::Health => Ok(api::health::health(state)),
        Route::Version => Ok(api::health::version()),
        Route::Metrics => Ok(api::metrics::metrics(state)),
        Route::ServerInfo => api::worker::server_info(state),
        Route::ModelInfo => api::worker::model_info(state),
        Route::Load => api::worker::load(state),
        Route::OpenApi => Ok(api::openapi::openapi()),
        Route::Playground(file) => Ok(playground::answer(file)),
    }
}

/// Where a request leads, if it is to be answered: what can be said of it before its body is read.
fn admit(state: &State, request: &Request<Incoming>) -> Result<Route, ApiError> {
    let (path, method) = (request.uri().path(), request.method());
    let route = Route::of(path).ok_or_else(|| ApiError::no_such_path(path))?;
    if method == Method::OPTIONS {
        return Ok(route);
    }
    if !route.takes(method) {
        return Err(ApiError::method_not_allowed(path, route.methods()));
    }
    if !route.is_open() && !is_authorized(state.settings.api_key.as_ref(), request.headers()) {
        return Err(ApiError::unauthorized());
    }
    if matches!(route, Route::Post(_)) && !cors::may_post(&state.settings.cors_allow_origins, request.headers()) {
        return Err(ApiError::foreign_page());
    }
    if matches!(route, Route::Post(_)) && state.drain.is_draining() {
        return Err(ApiError::draining());
    }
    Ok(route)
}

fn options(route: Route, request: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(body::full(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(route.methods()));
    cors::preflight(route.methods(), request, response.headers_mut());
    response
}

fn is_authorized(api_key: Option<&ApiKey>, headers: &HeaderMap) -> bool {
    let Some(api_key) = api_key else { return true };
    let Some(given) = headers.get(AUTHORIZATION) else { return false };
    let Some((scheme, given)) = given.as_bytes().split_at_checked(b"Bearer ".len()) else { return false };
    scheme.eq_ignore_ascii_case(b"Bearer ") && api_key.matches(given)
}
