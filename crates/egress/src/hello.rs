//! From the greeting to the first transaction: the TLS ladder and AUTH.

use crate::auth::{Exchange, Step};
use crate::classify;
use crate::connection::{Connection, Phase, trouble};
use crate::fit::Protection;
use postrider_engine::ConnectionEnd;
use postrider_model::snapshot::TlsLevel;
use postrider_model::{EnhancedCode, Timestamp};

impl Connection {
    /// EHLO was answered: goes up the TLS ladder, then to AUTH, then to work.
    pub(crate) fn greeted(&mut self, now: Timestamp) {
        let level = self.route.as_deref().map_or(TlsLevel::Opportunistic, |route| route.tls);
        // What never leaves the machine needs no TLS.
        if self.protection == Protection::None && !self.is_local {
            let offered = self.client.extensions().starttls;
            if level >= TlsLevel::Encrypted && !offered {
                self.no_tls(now, "does not offer STARTTLS");
                return;
            }
            if level >= TlsLevel::Encrypted || level == TlsLevel::Opportunistic && offered && !self.plain_only
            {
                self.client.starttls();
                return;
            }
        }
        if level == TlsLevel::Verified && self.protection == Protection::Encrypted {
            // The shell was asked to verify; a session that was not must not be used.
            self.no_tls(now, "did not show a certificate that names it");
            return;
        }
        match self.credentials().cloned() {
            None => self.open(),
            Some(credentials) => {
                let may_show_password =
                    level == TlsLevel::None || self.is_local || self.protection > Protection::None;
                let offered = self.client.extensions().auth;
                let memory = self.scram.take();
                match Exchange::new(&credentials, offered, may_show_password, self.nonce, memory) {
                    Ok(exchange) => self.authenticate(now, exchange),
                    Err(why) => {
                        let text = format!("{} wants no AUTH that we could give: {why}", self.peer);
                        let end = ConnectionEnd::Unreachable(trouble(EnhancedCode(4, 7, 0), &text));
                        self.quit(now, end);
                    }
                }
            }
        }
    }

    /// STARTTLS was refused.
    pub(crate) fn starttls_refused(&mut self, now: Timestamp) {
        let level = self.route.as_deref().map_or(TlsLevel::Opportunistic, |route| route.tls);
        if level >= TlsLevel::Encrypted {
            let said = self.client.reply().to_reply();
            self.no_tls(now, &format!("refused STARTTLS: {said}"));
        } else {
            // RFC 3207 §4.1: the client decides; opportunistic means to go on.
            self.plain_only = true;
            self.greeted(now);
        }
    }

    /// The greeting, EHLO or HELO was refused.
    pub(crate) fn refused(&mut self, now: Timestamp) {
        let raw = self.client.reply();
        let reply = raw.to_reply();
        let end = if classify::asks_for_less(raw) {
            ConnectionEnd::Throttled(reply)
        } else {
            ConnectionEnd::Unreachable(reply)
        };
        if raw.code() == 421 {
            self.phase = Phase::Ended(end);
        } else {
            self.quit(now, end);
        }
    }

    fn authenticate(&mut self, now: Timestamp, mut exchange: Exchange) {
        let (mechanism, initial) = exchange.begin();
        self.client.auth(mechanism, initial);
        self.progress_at = now;
        self.phase = Phase::Auth(Box::new(exchange));
    }

    /// Takes a reply within AUTH.
    pub(crate) fn on_auth(&mut self, now: Timestamp, code: u16) {
        let Phase::Auth(exchange) = &mut self.phase else { return };
        match (code, exchange.step(code, self.client.reply().text())) {
            (_, Step::Done) => {
                self.open();
            }
            (_, Step::Answer(line)) => self.client.auth_line(&line),
            (334, Step::Failed(why)) => {
                // RFC 4954 §4: `*` cancels the exchange.
                self.client.auth_line("*");
                self.auth_failed(now, why);
            }
            (_, Step::Failed(why)) => self.auth_failed(now, why),
        }
    }

    fn auth_failed(&mut self, now: Timestamp, why: &str) {
        let said = self.client.reply().to_reply();
        let text = format!("{} did not let us in: {why} ({said})", self.peer);
        self.quit(now, ConnectionEnd::Unreachable(trouble(EnhancedCode(4, 7, 8), &text)));
    }

    fn no_tls(&mut self, now: Timestamp, why: &str) {
        let route = self.route.as_deref().map_or("", |route| &route.name);
        let text = format!("Route {route} demands TLS, and {} {why}.", self.peer);
        self.quit(now, ConnectionEnd::Unreachable(trouble(EnhancedCode(4, 7, 4), &text)));
    }

    /// The session is ready for transactions.
    fn open(&mut self) {
        if let Phase::Auth(exchange) = std::mem::replace(&mut self.phase, Phase::Open) {
            self.scram = exchange.into_memory();
        }
        let extensions = self.client.extensions();
        self.messages_max = self.messages_max.min(extensions.messages_max.unwrap_or(usize::MAX));
        self.recipients_max = extensions.recipients_max.unwrap_or(usize::MAX);
    }
}
