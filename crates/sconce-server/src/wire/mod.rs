//! The request bodies: JSON in, requests to the engine out. Everything about names and types of fields is here.

mod fields;
mod messages;
mod prompt;
mod request;
mod value;

#[cfg(test)]
mod tests;

pub use fields::{Endpoint, FIELDS, Field};
pub use request::WireRequest;
pub use value::{FieldValue, FromField};
