//! AUTH: between the server's questions and the exchanges of `auth`.

use crate::identity::Identity;
use crate::session::Session;
use postrider_auth::{Authenticated, Exchange, Failure, Job, Mechanism, Step, Verdict};
use postrider_model::{EnhancedCode, Reply, Timestamp};

/// An AUTH command on its way.
#[derive(Default)]
pub(crate) struct Authentication {
    exchange: Option<Exchange>,
    /// To be run by whoever asks for it.
    job: Option<Job>,
    /// A job was handed out and its verdict is awaited.
    awaits_verdict: bool,
    nonces: u64,
}

impl Authentication {
    pub(crate) fn is_running(&self) -> bool {
        self.job.is_some() || self.awaits_verdict
    }

    pub(crate) fn cancel(&mut self) {
        self.exchange = None;
        self.job = None;
        self.awaits_verdict = false;
    }
}

impl Session {
    /// The password to check, once: run [`Job::verify`] on a thread that may be busy for milliseconds, then
    /// give the answer to [`Session::auth_verdict`].
    pub fn take_auth_job(&mut self) -> Option<Job> {
        let job = self.authentication.job.take()?;
        self.authentication.awaits_verdict = true;
        Some(job)
    }

    /// The answer to a job. Call [`Session::receive`] after it with what input there is.
    pub fn auth_verdict(&mut self, now: Timestamp, verdict: Verdict) {
        if !std::mem::take(&mut self.authentication.awaits_verdict) {
            return;
        }
        if let Some(exchange) = &mut self.authentication.exchange {
            let step = exchange.verdict(verdict);
            self.auth_step(now, step);
        }
        self.note_progress(now);
    }

    pub(crate) fn begin_auth(&mut self, now: Timestamp, mechanism: &str, initial: Option<&[u8]>) {
        let Ok(mechanism) = mechanism.parse::<Mechanism>() else {
            return self.auth_failed(Failure::Mechanism);
        };
        let mut exchange = Exchange::new(mechanism, self.nonce());
        let step = exchange.start(initial, &self.context.directory);
        self.authentication.exchange = Some(exchange);
        self.auth_step(now, step);
    }

    pub(crate) fn continue_auth(&mut self, now: Timestamp, response: &[u8]) {
        let Some(exchange) = &mut self.authentication.exchange else {
            return self.auth_failed(Failure::Malformed);
        };
        let step = exchange.step(response, &self.context.directory);
        self.auth_step(now, step);
    }

    fn auth_step(&mut self, now: Timestamp, step: Step) {
        match step {
            Step::Challenge(challenge) => self.server.challenge(&challenge),
            Step::Verify(job) => self.authentication.job = Some(job),
            Step::Success(authenticated) => self.authenticated(now, &authenticated),
            Step::Failure(failure) => self.auth_failed(failure),
        }
    }

    fn authenticated(&mut self, now: Timestamp, authenticated: &Authenticated) {
        self.authentication.cancel();
        let name = authenticated.account();
        match Identity::by_name(&self.context, name) {
            Some(Identity::Application(login)) => {
                if !login.is_valid(now) {
                    return self.auth_failed(Failure::Credentials);
                }
                // The password was right, so the reason may be told.
                if let Err(denied) = login.application.may_send(now) {
                    let reply = Reply::ours(525, EnhancedCode(5, 7, 13), &denied.to_string());
                    return self.server.refuse_auth(&reply);
                }
                self.identity = Identity::Application(login);
                self.server.accept_auth();
            }
            _ if self.context.listener.sandbox => {
                self.identity = Identity::Sandbox(name.into());
                self.server.accept_auth();
            }
            Some(identity) => {
                self.identity = identity;
                self.server.accept_auth();
            }
            // The exchange asked the directory of when it began.
            None => self.auth_failed(Failure::Credentials),
        }
    }

    fn auth_failed(&mut self, failure: Failure) {
        self.authentication.cancel();
        let (code, enhanced) = match failure {
            Failure::Mechanism => (504, EnhancedCode(5, 5, 4)),
            Failure::Malformed => (501, EnhancedCode(5, 5, 2)),
            Failure::Credentials | Failure::Authorisation => (535, EnhancedCode(5, 7, 8)),
        };
        let mut text = failure.to_string();
        text[..1].make_ascii_uppercase();
        self.server.refuse_auth(&Reply::ours(code, enhanced, &text));
    }

    /// New for every exchange of the session.
    fn nonce(&mut self) -> [u8; 18] {
        let mut nonce = [0; 18];
        for part in nonce.chunks_mut(8) {
            self.authentication.nonces += 1;
            let mut x = self.context.seed ^ self.authentication.nonces.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let bytes = (x ^ (x >> 31)).to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
        nonce
    }
}
