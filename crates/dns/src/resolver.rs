//! The resolver's thread: many shards ask, one cache answers, name servers are asked once.

use crate::answer::{Addresses, Answer, MailRoute, Query, Route};
use crate::cache::{Cache, CacheLimits, Cached};
use crate::error::{Asked, DnsError};
use crate::hickory;
use crate::records::{Question, RecordKind, Records, Reply};
use crate::route::{Plan, addresses, conclude, literal_addresses, plan};
use hickory_resolver::proto::op::Query as HostsQuery;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::{Hosts, TokioResolver};
use postrider_model::Domain;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// Queries that wait for the thread; a shard that asks more is told so at once.
const WAITING_MAX: usize = 16_384;
/// Queries that are worked on. Most end in the cache.
const UNDER_WAY_MAX: usize = 4_096;
/// Questions that name servers are asked at once; each takes a socket.
const QUESTIONS_MAX: usize = 512;
/// No question takes longer, whatever the name servers do.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Whom to ask, and who we are.
#[derive(Clone, Debug)]
pub struct ResolverOptions {
    /// Name servers with their ports; none means those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// Names under which this relay is itself an exchanger: its mail must not come back.
    pub own_names: Vec<Domain>,
    /// A question that is not answered by then is asked once more, with the same patience. Lost datagrams are
    /// sent again within it.
    pub answer_timeout: Duration,
    /// What is remembered, and for how long.
    pub cache: CacheLimits,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        ResolverOptions {
            servers: Vec::new(),
            own_names: Vec::new(),
            answer_timeout: Duration::from_secs(4),
            cache: CacheLimits::default(),
        }
    }
}

/// Why the resolver did not start. The operator's to repair, but for a host without threads.
#[derive(Debug, Error)]
pub enum StartError {
    /// `/etc/resolv.conf` is of no use.
    #[error("the system's name servers are unknown ({0}); name some with delivery.dns_servers")]
    System(Box<str>),
    /// No thread.
    #[error("no thread for the resolver: {0}")]
    Thread(#[from] io::Error),
}

/// The face that the real resolver and the scripted one share.
pub trait Lookup {
    /// Asks. `reply` is called exactly once, from another thread or at once from this one; it should only
    /// hand the answer over and wake whoever asked.
    fn lookup(&self, query: Query, reply: Box<dyn FnOnce(Answer) + Send>);
}

/// The resolver. Dropping it stops its thread; what was not answered is answered with
/// [`DnsError::Stopped`].
#[derive(Debug)]
pub struct Resolver {
    queries: mpsc::Sender<Pending>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Resolver {
    /// Starts the resolver's thread.
    ///
    /// # Errors
    /// See [`StartError`]. Name servers that do not answer are no error here.
    pub fn start(options: ResolverOptions) -> Result<Self, StartError> {
        let (queries, incoming) = mpsc::channel(WAITING_MAX);
        let (stop, stopped) = oneshot::channel();
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("dns".into()).spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                match hickory::connect(&options.servers, options.answer_timeout, QUESTIONS_MAX) {
                    Ok(name_servers) => {
                        // The starter waits for nothing else.
                        let _ = started.send(Ok(()));
                        let worker = Rc::new(Worker::new(name_servers, options));
                        tokio::select! {
                            () = worker.serve(incoming) => {}
                            _ = stopped => {}
                        }
                    }
                    Err(error) => {
                        let _ = started.send(Err(StartError::System(error.to_string().into())));
                    }
                }
            });
        })?;
        let died = || StartError::Thread(io::Error::other("it ended before it began"));
        outcome.recv().map_err(|_| died())??;
        Ok(Resolver { queries, stop: Some(stop), thread: Some(thread) })
    }
}

impl Lookup for Resolver {
    fn lookup(&self, query: Query, reply: Box<dyn FnOnce(Answer) + Send>) {
        let pending = Pending { query, reply: Some(reply) };
        if let Err(refused) = self.queries.try_send(pending) {
            let error = match refused {
                mpsc::error::TrySendError::Full(_) => DnsError::Overloaded,
                mpsc::error::TrySendError::Closed(_) => DnsError::Stopped,
            };
            refused.into_inner().fail(error);
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        // The thread takes its look-ups down with it.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already answered everyone with `Stopped` and been reported.
            let _ = thread.join();
        }
    }
}

/// A query that will be answered, come what may.
struct Pending {
    query: Query,
    reply: Option<Box<dyn FnOnce(Answer) + Send>>,
}

impl Pending {
    fn answer(mut self, answer: Answer) {
        if let Some(reply) = self.reply.take() {
            reply(answer);
        }
    }

    fn fail(mut self, error: DnsError) {
        self.fail_by_reference(error);
    }

    fn fail_by_reference(&mut self, error: DnsError) {
        let Some(reply) = self.reply.take() else { return };
        let ttl = Reply::failed(error.clone()).ttl;
        reply(match &self.query {
            Query::MailRoute { domain, .. } => {
                let asked = Asked(RecordKind::Mx, domain.as_str()).to_string().into();
                Answer::MailRoute(MailRoute::TemporaryFailure { asked, error, ttl })
            }
            Query::Addresses { host } => {
                let asked = Asked(RecordKind::A, host.as_str()).to_string().into();
                Answer::Addresses(Addresses::TemporaryFailure { asked, error, ttl })
            }
        });
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.fail_by_reference(DnsError::Stopped);
    }
}

/// Everything on the resolver's thread.
struct Worker {
    name_servers: TokioResolver,
    own_names: Vec<Domain>,
    hosts_file: Hosts,
    cache: RefCell<Cache>,
    stale_after: Duration,
    /// Who waits for a question that is being asked.
    waiting: RefCell<HashMap<Question, Vec<oneshot::Sender<Reply>>>>,
    questions: Semaphore,
}

impl Worker {
    fn new(name_servers: TokioResolver, options: ResolverOptions) -> Self {
        Worker {
            name_servers,
            own_names: options.own_names,
            hosts_file: Hosts::from_system().unwrap_or_default(),
            cache: RefCell::new(Cache::new(options.cache)),
            stale_after: options.cache.stale_after,
            waiting: RefCell::default(),
            questions: Semaphore::new(QUESTIONS_MAX),
        }
    }

    async fn serve(self: Rc<Self>, mut incoming: mpsc::Receiver<Pending>) {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        loop {
            let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
            let Some(pending) = incoming.recv().await else { return };
            let worker = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                let answer = worker.answer(&pending.query).await;
                pending.answer(answer);
                drop(permit);
            });
        }
    }

    async fn answer(self: &Rc<Self>, query: &Query) -> Answer {
        match query {
            Query::MailRoute { domain, seed } => Answer::MailRoute(self.mail_route(domain, *seed).await),
            Query::Addresses { host } => {
                let answer = match self.in_hosts_file(host) {
                    Some(addresses) => addresses,
                    None => self.addresses(host).await,
                };
                Answer::Addresses(answer)
            }
        }
    }

    async fn mail_route(self: &Rc<Self>, domain: &Domain, seed: u64) -> MailRoute {
        if let Some(address) = domain.literal() {
            return MailRoute::Hosts(Route::to_literal(domain, address));
        }
        let mx = self.ask(domain, RecordKind::Mx).await;
        let candidates = match plan(domain, mx, &self.own_names, seed) {
            Plan::Done(route) => return route,
            Plan::LookUp(candidates) => candidates,
        };
        let lookups: Vec<_> = candidates
            .hosts
            .iter()
            .map(|(_, host)| {
                let (worker, host) = (Rc::clone(self), host.clone());
                tokio::task::spawn_local(async move { worker.addresses(&host).await })
            })
            .collect();
        let mut found = Vec::with_capacity(lookups.len());
        for (lookup, (_, host)) in lookups.into_iter().zip(&candidates.hosts) {
            found.push(lookup.await.unwrap_or_else(|_| {
                // The task panicked; it has said so itself.
                let failed = || Reply::failed(DnsError::Stopped);
                addresses(host, failed(), failed())
            }));
        }
        conclude(candidates, found)
    }

    async fn addresses(self: &Rc<Self>, host: &Domain) -> Addresses {
        if let Some(address) = host.literal() {
            return literal_addresses(address);
        }
        let (v4, v6) = tokio::join!(self.ask(host, RecordKind::A), self.ask(host, RecordKind::Aaaa));
        addresses(host, v4, v6)
    }

    /// `/etc/hosts` counts for hosts that the operator named, never for exchangers that DNS named.
    fn in_hosts_file(&self, host: &Domain) -> Option<Addresses> {
        let name = Name::from_ascii(host.as_str()).ok()?;
        let listed = |kind| {
            let query = HostsQuery::query(name.clone(), hickory::record_type(kind));
            self.hosts_file.lookup_static_host(&query).map(|lookup| hickory::found(kind, &lookup))
        };
        let (v4, v6) = (listed(RecordKind::A), listed(RecordKind::Aaaa));
        if v4.is_none() && v6.is_none() {
            return None;
        }
        let none = || Reply::new(Records::NoData, HOSTS_FILE_TTL);
        let capped = |reply: Option<Reply>| {
            reply.map_or_else(none, |reply| Reply { ttl: reply.ttl.min(HOSTS_FILE_TTL), ..reply })
        };
        Some(addresses(host, capped(v4), capped(v6)))
    }

    /// The cache's answer, or the name servers'.
    async fn ask(self: &Rc<Self>, name: &Domain, kind: RecordKind) -> Reply {
        let question = Question { name: name.clone(), kind };
        let cached = self.cache.borrow().get(&question, Instant::now());
        match cached {
            Cached::Fresh(reply) => reply,
            Cached::Nothing => self.join(question).await.unwrap_or_else(|_| Reply::failed(DnsError::Stopped)),
            Cached::Stale(stale) => match timeout(self.stale_after, self.join(question)).await {
                Ok(Ok(reply)) => reply,
                // The question goes on by itself and refreshes the cache when it ends.
                Ok(Err(_)) | Err(_) => stale,
            },
        }
    }

    /// Waits with all others who ask the same; the first one starts the question.
    fn join(self: &Rc<Self>, question: Question) -> oneshot::Receiver<Reply> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        if let Some(others) = waiting.get_mut(&question) {
            others.push(sender);
            return receiver;
        }
        waiting.insert(question.clone(), vec![sender]);
        drop(waiting);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let reply = worker.ask_name_servers(&question).await;
            let reply = worker.cache.borrow_mut().put(question.clone(), reply, Instant::now());
            let waiting = worker.waiting.borrow_mut().remove(&question);
            for waiter in waiting.into_iter().flatten() {
                // A waiter that took the stale answer is gone.
                let _ = waiter.send(reply.clone());
            }
        });
        receiver
    }

    async fn ask_name_servers(&self, question: &Question) -> Reply {
        let Ok(_permit) = self.questions.acquire().await else { return Reply::failed(DnsError::Stopped) };
        // Two tries take no longer than that; aliases and many dead name servers might.
        let reply = timeout(QUESTION_TIMEOUT, hickory::ask(&self.name_servers, question))
            .await
            .unwrap_or_else(|_| Reply::failed(DnsError::Timeout));
        if let Records::Failed(error) = &reply.records {
            let asked = Asked(question.kind, question.name.as_str());
            tracing::debug!(%asked, %error, culprit = ?error.culprit(), "look-up failed");
        }
        reply
    }
}

/// The file is read once, at the start; its answers hold like a short TTL.
const HOSTS_FILE_TTL: Duration = Duration::from_secs(60);
