//! A certificate that vouches for itself: for the sandbox and for tests.

use rcgen::{CertificateParams, KeyPair};
use thiserror::Error;

/// Why no certificate could be made: a name that a certificate cannot bear.
#[derive(Debug, Error)]
#[error("no certificate can be made for {name:?}: {error}")]
pub struct SelfSignedError {
    name: Box<str>,
    error: rcgen::Error,
}

/// A certificate that nobody vouches for, and its key, in PEM.
#[derive(Clone)]
pub struct SelfSigned {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl SelfSigned {
    /// For a host name, with a new ECDSA P-256 key.
    ///
    /// # Errors
    /// The name is no host name.
    pub fn new(hostname: &str) -> Result<Self, SelfSignedError> {
        let failed = |error| SelfSignedError { name: hostname.into(), error };
        let key = KeyPair::generate().map_err(failed)?;
        let params = CertificateParams::new(vec![hostname.to_owned()]).map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(SelfSigned { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}
