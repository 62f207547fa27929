//! Credentials: SCRAM verifiers and SASL exchanges.
