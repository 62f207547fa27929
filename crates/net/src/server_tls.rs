//! How we do TLS as a server.

use crate::CertificateStore;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache};
use std::sync::Arc;
use thiserror::Error;

/// TLS 1.2 sessions remembered for clients that cannot keep a ticket.
const SESSIONS_MAX: usize = 4_096;

/// Why TLS cannot be offered. Ours: nothing in a configuration leads here.
#[derive(Debug, Error)]
#[error("TLS cannot be set up: {0}")]
pub struct ServerTlsError(#[from] rustls::Error);

/// The TLS of a listener, cheap to clone and to share between shards: TLS 1.2 and 1.3, sessions resumed by
/// tickets whose keys change every six hours and are never written anywhere.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    certificates: Arc<CertificateStore>,
}

impl ServerTls {
    /// With the certificates of `certificates`, also those of a later reload.
    ///
    /// # Errors
    /// The crypto library has no randomness, or none of the versions.
    pub fn new(certificates: Arc<CertificateStore>) -> Result<Self, ServerTlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(rustls::ALL_VERSIONS)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        match Ticketer::new() {
            Ok(ticketer) => {
                config.ticketer = ticketer;
                config.session_storage = Arc::new(NoServerSessionStorage {});
            }
            Err(error) => {
                tracing::warn!(%error, "no TLS tickets: sessions are remembered instead");
                config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
            }
        }
        // A mail client resumes one session at a time; the second ticket would only cost an encryption.
        config.send_tls13_tickets = 1;
        Ok(ServerTls { config: Arc::new(config), certificates })
    }

    /// The certificates, to reload them.
    #[must_use]
    pub fn certificates(&self) -> &CertificateStore {
        &self.certificates
    }

    /// The configuration, for shells that drive TLS themselves.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}
