//! The public HTTP listener's socket and certificate.

use crate::config::HttpSettings;
use anyhow::{Context, Result};
use postrider_api::HttpOptions;
use postrider_net::{CertificateStore, ServerTls};
use std::net::TcpListener;
use std::sync::Arc;

/// Listens, and reads what TLS needs.
pub(crate) fn bind(settings: &HttpSettings) -> Result<(TcpListener, HttpOptions)> {
    let address = settings.address;
    let listener = TcpListener::bind(address).with_context(|| {
        format!(
            "cannot serve HTTP on {address}; choose another place with `[http] address` in the configuration"
        )
    })?;
    let tls = settings.tls.clone().map(|files| -> Result<_> {
        let certificates = CertificateStore::load(vec![files])?;
        Ok(ServerTls::new(Arc::new(certificates))?.config())
    });
    let options = HttpOptions { tls: tls.transpose()?, trusted_proxies: settings.trusted_proxies.clone() };
    Ok((listener, options))
}
