//! What a configuration needs at run time beyond its snapshot: certificates, credentials, the guard.

use postrider_auth::Directory;
use postrider_model::Snapshot;
use postrider_model::control::Control;
use postrider_net::{CertificateStore, Guard, ServerTls};
use std::net::SocketAddr;
use std::sync::Arc;

/// A configuration made ready: what event loops read.
pub(crate) struct Loadout {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) control: Arc<Control>,
    /// By listener, as in the snapshot.
    pub(crate) tls: Vec<Option<ServerTls>>,
    /// Of the configuration file.
    accounts: Arc<Directory>,
    /// Of both, for listeners where one must log in.
    pub(crate) known: Arc<Directory>,
    /// Of the control plane and anyone else, for sandbox listeners.
    anyone: Arc<Directory>,
    pub(crate) guard: Guard,
}

impl Loadout {
    /// Reads certificates and verifiers.
    ///
    /// # Errors
    /// Everything that is wrong, in sentences.
    pub(crate) fn new(
        snapshot: Arc<Snapshot>,
        control: Arc<Control>,
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
        let accounts = Arc::new(accounts);
        let (known, anyone) = directories(&control, None, &accounts, secret);
        Ok(Loadout { tls, accounts, known, anyone, guard, snapshot, control })
    }

    /// The same with another answer to who may send what. Reads no file.
    pub(crate) fn with_control(&self, control: Arc<Control>, secret: [u8; 32]) -> Self {
        let (known, anyone) = directories(&control, Some(&self.anyone), &self.accounts, secret);
        Loadout {
            snapshot: self.snapshot.clone(),
            tls: self.tls.clone(),
            accounts: self.accounts.clone(),
            guard: self.guard.clone(),
            control,
            known,
            anyone,
        }
    }

    /// Who may log in at a listener.
    pub(crate) fn directory(&self, listener: usize) -> Arc<Directory> {
        match self.snapshot.listeners.get(listener) {
            Some(listener) if listener.sandbox => self.anyone.clone(),
            _ => self.known.clone(),
        }
    }
}

fn directories(
    control: &Control,
    before: Option<&Directory>,
    accounts: &Directory,
    secret: [u8; 32],
) -> (Arc<Directory>, Arc<Directory>) {
    let (applications, unreadable) = Directory::of_control(control, before, secret);
    for error in unreadable {
        tracing::error!(%error, "a credential of the store cannot be used");
    }
    let known = applications.joined(accounts);
    (Arc::new(known), Arc::new(applications.with_anyone()))
}
