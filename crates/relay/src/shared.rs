//! What all event loops share. None of it is touched for a message.

use crate::broker::Broker;
use crate::config::Loadout;
use crate::inbox::Inbox;
use crate::letter::Letter;
use crate::memory::Memory;
use crate::workers::Workers;
use arc_swap::ArcSwap;
use postrider_dns::Resolver;
use postrider_ingress::Overload;
use rustc_hash::FxHashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) struct Shared {
    pub(crate) loadout: ArcSwap<Loadout>,
    pub(crate) broker: Broker,
    pub(crate) workers: Workers,
    pub(crate) resolver: Resolver,
    pub(crate) inboxes: Vec<Inbox<Letter>>,
    pub(crate) memory: Memory,
    /// Sessions at once: by listener and client.
    sessions: Mutex<Sessions>,
    sessions_now: AtomicUsize,
}

#[derive(Default)]
struct Sessions {
    by_listener: FxHashMap<usize, usize>,
    by_client: FxHashMap<(usize, IpAddr), usize>,
}

impl Shared {
    pub(crate) fn new(
        loadout: Arc<Loadout>,
        workers: Workers,
        resolver: Resolver,
        inboxes: Vec<Inbox<Letter>>,
        memory_max_bytes: usize,
    ) -> Self {
        Shared {
            loadout: ArcSwap::new(loadout),
            broker: Broker::new(inboxes.len()),
            memory: Memory::new(memory_max_bytes, inboxes.len()),
            workers,
            resolver,
            inboxes,
            sessions: Mutex::default(),
            sessions_now: AtomicUsize::new(0),
        }
    }

    /// Counts a session in, or says which limit forbids it.
    pub(crate) fn admit(
        &self,
        listener: usize,
        client: IpAddr,
        connections_max: usize,
        connections_per_client_max: usize,
    ) -> Option<Overload> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let of_listener = sessions.by_listener.get(&listener).copied().unwrap_or(0);
        if of_listener >= connections_max {
            return Some(Overload::Listener { connections_max });
        }
        let of_client = sessions.by_client.entry((listener, client)).or_default();
        if *of_client >= connections_per_client_max {
            return Some(Overload::Client { connections_per_client_max });
        }
        *of_client += 1;
        *sessions.by_listener.entry(listener).or_default() += 1;
        self.sessions_now.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Counts a session out.
    pub(crate) fn leave(&self, listener: usize, client: IpAddr) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sessions.by_listener.get_mut(&listener) {
            *count = count.saturating_sub(1);
        }
        if let Some(count) = sessions.by_client.get_mut(&(listener, client)) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                sessions.by_client.remove(&(listener, client));
            }
        }
        self.sessions_now.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sessions open now.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions_now.load(Ordering::Relaxed)
    }
}
