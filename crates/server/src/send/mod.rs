//! A small SMTP client for people: one message, one dialogue, plain words about what went wrong.

mod advice;
mod compose;
mod dialogue;

pub(crate) use advice::advice;
pub(crate) use compose::Draft;
pub(crate) use dialogue::{Delivery, Failure, Login, TlsUse, deliver};
