//! HTTP/1.1: connections, routes, bodies, errors, and the two ways of streaming. Nothing here knows what a token is.

mod body;
mod cors;
mod drain;
mod error;
mod exchange;
mod json;
mod nul;
mod pieces;
mod router;
mod server;
mod sse;

#[cfg(test)]
mod tests;

pub use body::{Body, full, json, json_text, read_body, streamed, written};
pub use drain::{Drain, Drained, InFlight};
pub use error::ApiError;
pub use exchange::Exchange;
pub use json::{Json, List, Text, separate, write_string};
pub use nul::record;
pub use pieces::Pieces;
#[cfg(test)]
pub(crate) use router::paths;
pub use router::{answer, is_open};
pub use server::run;
pub use sse::{DONE, event, named_event};
