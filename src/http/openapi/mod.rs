//! What the node says of its own interface: a document in the form of `OpenAPI`, made of the [table of paths](super::routes) and of the errors as they are answered.
//!
//! A path, its methods and its name are those of the table, and an error's status, body and headers are those of an answer to it. So what is told here of either cannot differ from
//! what is done. What else there is to say of a route stands in `operations`, which has a case for each: one that is new does not compile before it is described.

mod answers;
mod document;
mod operations;
mod parameters;
mod schemas;

pub use document::answer;
#[cfg(test)]
pub use document::statuses;
