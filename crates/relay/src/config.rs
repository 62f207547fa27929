//! What a configuration needs at run time beyond its snapshot: certificates, credentials, the guard.

use postrider_auth::Directory;
use postrider_model::Snapshot;
use postrider_net::{CertificateStore, Guard, ServerTls};
use std::net::SocketAddr;
use std::sync::Arc;

/// A configuration made ready: what event loops read.
pub(crate) struct Loadout {
    pub(crate) snapshot: Arc<Snapshot>,
    /// By listener, as in the snapshot.
    pub(crate) tls: Vec<Option<ServerTls>>,
    pub(crate) accounts: Arc<Directory>,
    pub(crate) anyone: Arc<Directory>,
    pub(crate) guard: Guard,
}

impl Loadout {
    /// Reads certificates and verifiers.
    ///
    /// # Errors
    /// Everything that is wrong, in sentences.
    pub(crate) fn new(
        snapshot: Arc<Snapshot>,
        own: Vec<SocketAddr>,
        secret: [u8; 32],
    ) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let mut tls = Vec::new();
        for listener in &snapshot.listeners {
            let made = listener.tls.clone().map(|files| {
                CertificateStore::load(vec![files])
                    .map_err(|error| error.to_string())
                    .and_then(|store| ServerTls::new(Arc::new(store)).map_err(|error| error.to_string()))
            });
            match made.transpose() {
                Ok(made) => tls.push(made),
                Err(error) => wrong.push(format!("listener {}: {error}", listener.name)),
            }
        }
        let accounts = match Directory::of_accounts(&snapshot.accounts, secret) {
            Ok(directory) => directory,
            Err(errors) => {
                wrong.extend(errors.iter().map(ToString::to_string));
                Directory::anyone()
            }
        };
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let guard = Guard::new(own, snapshot.delivery.allowed_networks.clone());
        Ok(Loadout {
            tls,
            accounts: Arc::new(accounts),
            anyone: Arc::new(Directory::anyone()),
            guard,
            snapshot,
        })
    }

    /// Who may log in at a listener.
    pub(crate) fn directory(&self, listener: usize) -> Arc<Directory> {
        match self.snapshot.listeners.get(listener) {
            Some(listener) if listener.sandbox => self.anyone.clone(),
            _ => self.accounts.clone(),
        }
    }
}
