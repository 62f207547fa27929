//! How we do TLS as a client, by level.

use postrider_model::snapshot::TlsLevel;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Servers whose sessions are remembered, per shard and level.
const SESSIONS_MAX: usize = 1_024;

/// Why certificates of remote servers cannot be verified. The operator's to repair.
#[derive(Debug, Error)]
pub enum ClientTlsError {
    /// A file of further authorities cannot be used.
    #[error("{path}: {error}", path = path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What reading it said.
        error: pem::Error,
    },
    /// A certificate in it is not an authority's.
    #[error("{path}: not a usable authority: {error}", path = path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        error: rustls::Error,
    },
    /// Ours: the crypto library lacks what every build of it has.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// The TLS of outgoing connections. Sessions of one level are never resumed at another.
#[derive(Clone, Debug)]
pub struct ClientTls {
    unchecked: Arc<ClientConfig>,
    verified: Arc<ClientConfig>,
}

impl ClientTls {
    /// With the system's authorities and those in the PEM files of `more_authorities`. Reads a few hundred
    /// certificates: made once, then [`ClientTls::for_shard`].
    ///
    /// # Errors
    /// A file cannot be used. A system without authorities is no error; there, no certificate is verified.
    pub fn new(more_authorities: &[PathBuf]) -> Result<Self, ClientTlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = system_authorities();
        for path in more_authorities {
            add_authorities(&mut roots, path)?;
        }
        let builder = || {
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(rustls::ALL_VERSIONS)
                .map(rustls::ConfigBuilder::dangerous)
        };
        let anyone = Arc::new(Unchecked { provider: Arc::clone(&provider) });
        let unchecked = builder()?.with_custom_certificate_verifier(anyone).with_no_client_auth();
        let verified = if roots.is_empty() {
            builder()?.with_custom_certificate_verifier(Arc::new(NoAuthorities)).with_no_client_auth()
        } else {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?;
            builder()?.with_custom_certificate_verifier(verifier).with_no_client_auth()
        };
        Ok(ClientTls { unchecked: Arc::new(unchecked), verified: Arc::new(verified) }.for_shard())
    }

    /// The same with a memory of sessions of its own, so that shards share nothing.
    #[must_use]
    pub fn for_shard(&self) -> Self {
        let with_own_sessions = |config: &ClientConfig| {
            let mut config = config.clone();
            config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
            Arc::new(config)
        };
        ClientTls {
            unchecked: with_own_sessions(&self.unchecked),
            verified: with_own_sessions(&self.verified),
        }
    }

    /// The configuration of a level, for who drives rustls over a blocking socket.
    #[must_use]
    pub fn rustls_config(&self, level: TlsLevel) -> Arc<ClientConfig> {
        self.config(level)
    }

    pub(crate) fn config(&self, level: TlsLevel) -> Arc<ClientConfig> {
        Arc::clone(match level {
            TlsLevel::Verified => &self.verified,
            TlsLevel::None | TlsLevel::Opportunistic | TlsLevel::Encrypted => &self.unchecked,
        })
    }
}

fn system_authorities() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of the system's certificate authorities cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    if ignored > 0 {
        tracing::debug!(ignored, "certificate authorities in a form that TLS cannot use");
    }
    if roots.is_empty() {
        tracing::warn!(
            "the system has no certificate authorities: `tls = \"verified\"` will fail everywhere"
        );
    }
    roots
}

fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<(), ClientTlsError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| ClientTlsError::Authorities { path: path.into(), error })?;
    if certificates.is_empty() {
        let error = pem::Error::NoItemsFound;
        return Err(ClientTlsError::Authorities { path: path.into(), error });
    }
    for certificate in certificates {
        roots.add(certificate).map_err(|error| ClientTlsError::Authority { path: path.into(), error })?;
    }
    Ok(())
}

/// Takes any certificate, but only from a peer that holds its key: mail servers commonly show certificates
/// that name them wrongly or that nobody vouches for, and clear text would be worse (RFC 7435 §3).
#[derive(Debug)]
struct Unchecked {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes no certificate: there is nobody to vouch for one.
#[derive(Debug)]
struct NoAuthorities;

impl ServerCertVerifier for NoAuthorities {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Err(rustls::CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::CertificateError::UnknownIssuer.into())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::CertificateError::UnknownIssuer.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
