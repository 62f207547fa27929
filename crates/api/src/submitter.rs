//! Between requests, one message each, and shards, which are told of batches.
//!
//! Requests of one turn of the event loop are handed over together, and the answers of one sync come back
//! together: there is no lock and no wake-up of another thread for each message.

use crate::port::Relay;
use crate::problem::Problem;
use postrider_ingress::{Answers, Settled, Submission};
use postrider_model::Reply;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// Messages handed over at once.
const TURN_MAX: usize = 512;
/// Messages that may wait for their answer.
const WAITING_MAX: usize = 20_000;
/// How long a message may take to become durable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

type Answer = oneshot::Sender<Result<Box<str>, Reply>>;

/// Hands messages over and waits until they are durable.
#[derive(Clone)]
pub(crate) struct Submitter {
    waiting: mpsc::Sender<(Submission, Answer)>,
}

impl Submitter {
    /// Begins, on the runtime that this is called in.
    pub(crate) fn start<R: Relay>(relay: R) -> Self {
        let (waiting, requests) = mpsc::channel(WAITING_MAX);
        tokio::spawn(carry(relay, requests));
        Submitter { waiting }
    }

    /// The message's id, once it is durable.
    pub(crate) async fn submit(&self, submission: Submission) -> Result<Box<str>, Problem> {
        let answered = self.hand_over(submission)?;
        wait(answered).await
    }

    /// The same for several; those that could not even be drafted keep their place.
    pub(crate) async fn submit_all(
        &self,
        drafts: Vec<Result<Submission, Problem>>,
    ) -> Vec<Result<Box<str>, Problem>> {
        let answered: Vec<_> = drafts.into_iter().map(|draft| self.hand_over(draft?)).collect();
        let mut results = Vec::with_capacity(answered.len());
        for answered in answered {
            results.push(match answered {
                Ok(answered) => wait(answered).await,
                Err(problem) => Err(problem),
            });
        }
        results
    }

    fn hand_over(
        &self,
        submission: Submission,
    ) -> Result<oneshot::Receiver<Result<Box<str>, Reply>>, Problem> {
        let (answer, answered) = oneshot::channel();
        self.waiting.try_send((submission, answer)).map_err(|_| {
            Problem::busy(format!("{WAITING_MAX} messages wait to be taken; try again later"))
        })?;
        Ok(answered)
    }
}

async fn wait(answered: oneshot::Receiver<Result<Box<str>, Reply>>) -> Result<Box<str>, Problem> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(Ok(id))) => Ok(id),
        Ok(Ok(Err(reply))) => Err(Problem::from_reply(&reply)),
        Ok(Err(_)) => {
            Err(Problem::busy("the relay is stopping; it is not known whether the message was taken"))
        }
        Err(_) => Err(Problem::timeout()),
    }
}

/// Answers on their way from the shards' threads.
#[derive(Default)]
struct Post {
    settled: Mutex<Vec<Settled>>,
    bell: Notify,
}

async fn carry<R: Relay>(relay: R, mut requests: mpsc::Receiver<(Submission, Answer)>) {
    let post = Arc::new(Post::default());
    let answers: Answers = {
        let post = post.clone();
        Arc::new(move |settled| {
            let mut waiting = post.settled.lock().unwrap_or_else(PoisonError::into_inner);
            let was_empty = waiting.is_empty();
            waiting.extend(settled);
            drop(waiting);
            if was_empty {
                post.bell.notify_one();
            }
        })
    };
    let mut open: HashMap<u64, Answer> = HashMap::new();
    let mut last_tag = 0;
    let mut turn = Vec::with_capacity(TURN_MAX);
    let mut settled = Vec::new();
    loop {
        let may_take = open.len() < WAITING_MAX;
        tokio::select! {
            taken = requests.recv_many(&mut turn, TURN_MAX), if may_take => {
                if taken == 0 {
                    return;
                }
                let batch = turn.drain(..).map(|(submission, answer)| {
                    last_tag += 1;
                    open.insert(last_tag, answer);
                    Submission { tag: last_tag, ..submission }
                });
                relay.submit(batch.collect(), &answers);
            }
            () = post.bell.notified() => {
                std::mem::swap(&mut *post.settled.lock().unwrap_or_else(PoisonError::into_inner), &mut settled);
                for Settled { tag, result } in settled.drain(..) {
                    if let Some(answer) = open.remove(&tag) {
                        // Who asked may have gone; the message stays taken.
                        let _ = answer.send(result);
                    }
                }
            }
        }
    }
}
