//! The HTTP API on the admin socket.
