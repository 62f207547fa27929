//! Sessions that take mail in: identity, permission, acceptance.
