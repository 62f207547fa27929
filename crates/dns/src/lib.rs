//! One resolver face: MX, A and AAAA with their failures told apart.
