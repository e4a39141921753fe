//! HTTP/1.1: connections, routes, bodies, errors, and the two ways of streaming. Nothing here knows what a token is.

mod body;
mod cors;
mod drain;
mod error;
mod exchange;
mod nul;
mod router;
mod server;
mod sse;

#[cfg(test)]
mod tests;

pub use body::{Body, full, json, json_text, read_body, streamed};
pub use drain::{Drain, Drained, InFlight};
pub use error::ApiError;
pub use exchange::Exchange;
pub use nul::record;
#[cfg(test)]
pub(crate) use router::paths;
pub use router::{answer, is_open};
pub use server::run;
pub use sse::{DONE, event, named_event};
