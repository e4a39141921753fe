//! The request bodies: JSON in, requests to the engine out. Everything about names and types of fields is here.

mod bodies;
mod fields;
mod format;
mod messages;
mod prompt;
mod request;
mod responses;
mod schema;
mod tools;
mod value;

#[cfg(test)]
mod tests;

pub use bodies::{OBJECTS, body};
pub use fields::{Endpoint, FIELDS, Field};
pub use request::WireRequest;
pub use schema::{Member, Object, Rest, Schema, may, must};
pub use tools::{ToolChoice, Tools};
pub use value::{FieldValue, FromField};
