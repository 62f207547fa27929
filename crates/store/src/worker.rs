//! Threads that own connections: one that writes, a few that read.

use crate::StoreError;
use crate::session::Session;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

/// Something to be done with a connection.
pub(crate) type Job = Box<dyn FnOnce(Result<&mut dyn Session, StoreError>) + Send>;
/// Opens a connection.
pub(crate) type Open = Arc<dyn Fn() -> Result<Box<dyn Session>, StoreError> + Send + Sync>;

/// Reads wait no longer in line than so many.
const READS_MAX: usize = 256;

/// Threads that read, each with a connection of its own, opened when it is first needed and after it failed.
pub(crate) struct Readers {
    jobs: Option<mpsc::SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(crate) fn start(count: usize, open: &Open) -> io::Result<Self> {
        let (jobs, queue) = mpsc::sync_channel::<Job>(READS_MAX);
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for n in 0..count.max(1) {
            let (queue, open) = (queue.clone(), open.clone());
            threads.push(std::thread::Builder::new().name(format!("store-read-{n}")).spawn(move || {
                let mut session: Option<Box<dyn Session>> = None;
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    if session.is_none() {
                        match open() {
                            Ok(opened) => session = Some(opened),
                            Err(error) => {
                                job(Err(error));
                                continue;
                            }
                        }
                    }
                    if let Some(session) = &mut session {
                        job(Ok(session.as_mut()));
                    }
                }
            })?);
        }
        Ok(Readers { jobs: Some(jobs), threads })
    }

    /// Has a job done, unless too many wait.
    pub(crate) fn assign(&self, job: Job) -> Result<(), StoreError> {
        let busy = || StoreError::Unavailable("too many questions wait".to_owned());
        self.jobs.as_ref().ok_or_else(busy)?.try_send(job).map_err(|_| busy())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
