//! Certificates from files, chosen by the name that the client asks for, replaced under living sessions.

use arc_swap::ArcSwap;
use postrider_model::snapshot::TlsFiles;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Why certificate files cannot be used. The operator's to repair; the text says which file.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read, or is no PEM.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What reading it said.
        error: pem::Error,
    },
    /// A certificate file without a certificate.
    #[error("{}: no certificate in this file; it must hold the chain in PEM, the server's own first", .0.display())]
    NoCertificate(PathBuf),
    /// A certificate that TLS cannot use.
    #[error("{path}: not a usable certificate: {error}", path = path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        error: rustls::Error,
    },
    /// A key of a kind that TLS cannot use.
    #[error("{path}: not a usable private key: {error}", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        error: rustls::Error,
    },
    /// Key and certificate of two different pairs.
    #[error("{key}: not the key of the certificate in {certificate}", key = key.display(), certificate = certificate.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// No files were given.
    #[error("no certificate is configured")]
    Empty,
}

/// The certificates of a listener. [`CertificateStore::reload`] swaps them for those that the files hold
/// then; sessions that live go on with what they negotiated.
#[derive(Debug)]
pub struct CertificateStore {
    files: Vec<TlsFiles>,
    // The first is for clients that ask for no name, or for one that none of them bears.
    certificates: ArcSwap<Vec<Arc<CertifiedKey>>>,
}

impl CertificateStore {
    /// From files; the first pair is the default.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(files: Vec<TlsFiles>) -> Result<Self, CertificateError> {
        let certificates = ArcSwap::from_pointee(load_all(&files)?);
        Ok(CertificateStore { files, certificates })
    }

    /// From PEM in memory: certificate chain and key. Reloading keeps it.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, CertificateError> {
        let (chain_name, key_name) = (Path::new("(certificate)"), Path::new("(key)"));
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
        let pair = certified(chain_name, chain, key_name, key)?;
        Ok(CertificateStore { files: Vec::new(), certificates: ArcSwap::from_pointee(vec![Arc::new(pair)]) })
    }

    /// Reads the files again. All or nothing: on an error the certificates in use stay.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn reload(&self) -> Result<(), CertificateError> {
        if !self.files.is_empty() {
            self.certificates.store(Arc::new(load_all(&self.files)?));
        }
        Ok(())
    }

    fn choose(&self, server_name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let certificates = self.certificates.load();
        let named = match (server_name, certificates.as_slice()) {
            (_, [only]) => return Some(Arc::clone(only)),
            (Some(name), several) => several.iter().find(|certificate| bears(certificate, name)),
            (None, _) => None,
        };
        named.or_else(|| certificates.first()).cloned()
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}

/// True if the certificate is one for `name`, wildcards as in RFC 6125 §6.4.3.
fn bears(certificate: &CertifiedKey, name: &str) -> bool {
    let (Some(leaf), Ok(name)) = (certificate.cert.first(), ServerName::try_from(name)) else { return false };
    ParsedCertificate::try_from(leaf).is_ok_and(|leaf| verify_server_name(&leaf, &name).is_ok())
}

fn load_all(files: &[TlsFiles]) -> Result<Vec<Arc<CertifiedKey>>, CertificateError> {
    if files.is_empty() {
        return Err(CertificateError::Empty);
    }
    files.iter().map(|pair| load_pair(pair).map(Arc::new)).collect()
}

fn load_pair(files: &TlsFiles) -> Result<CertifiedKey, CertificateError> {
    let chain = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect);
    certified(&files.certificate, chain, &files.key, PrivateKeyDer::from_pem_file(&files.key))
}

fn certified(
    chain_path: &Path,
    chain: Result<Vec<CertificateDer<'static>>, pem::Error>,
    key_path: &Path,
    key: Result<PrivateKeyDer<'static>, pem::Error>,
) -> Result<CertifiedKey, CertificateError> {
    let chain = chain.map_err(|error| CertificateError::File { path: chain_path.into(), error })?;
    let Some(leaf) = chain.first() else { return Err(CertificateError::NoCertificate(chain_path.into())) };
    ParsedCertificate::try_from(leaf)
        .map_err(|error| CertificateError::Certificate { path: chain_path.into(), error })?;
    let key = key.map_err(|error| CertificateError::File { path: key_path.into(), error })?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| CertificateError::Key { path: key_path.into(), error })?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        // `Unknown` means that this kind of key cannot tell; the handshake will.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(pair),
        Err(_) => Err(CertificateError::Mismatch { key: key_path.into(), certificate: chain_path.into() }),
    }
}
