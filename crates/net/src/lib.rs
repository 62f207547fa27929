//! Sockets, TLS and the guard of outbound addresses.
