//! STARTTLS, AUTH and XCLIENT: what changes who the client is.

use super::{Event, Phase, Question, Server, Tls, replies};
use crate::command::Xclient;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use postrider_model::{EnhancedCode, Reply};

impl Server {
    pub(super) fn start_tls<'i>(&mut self, rest: &[u8]) -> Option<Event<'i>> {
        match self.offer.tls {
            Tls::Unavailable => self.fail(replies::NO_TLS),
            Tls::Active => self.fail(replies::TLS_ACTIVE),
            Tls::Offered if self.greeted.is_none() => self.fail(replies::EHLO_FIRST),
            Tls::Offered if self.transaction.is_some() => self.fail(replies::NOT_IN_TRANSACTION),
            // Whoever put octets here hopes that we take them as said under TLS (CVE-2011-0411).
            Tls::Offered if !rest.is_empty() => {
                self.close(replies::INJECTED);
                return Some(Event::Closed);
            }
            Tls::Offered => {
                self.output.extend_from_slice(replies::START_TLS);
                self.phase = Phase::StartTls;
                return Some(Event::StartTls);
            }
        }
        None
    }

    pub(super) fn auth<'i>(
        &mut self,
        mechanism: &str,
        initial: Option<&str>,
        rest: &[u8],
    ) -> Option<Event<'i>> {
        let offer = &self.offer;
        if offer.mechanisms.is_empty() {
            self.fail(replies::NO_AUTH);
        } else if self.greeted != Some(true) {
            self.fail(if offer.lmtp { replies::LHLO_FIRST } else { replies::EHLO_FIRST });
        } else if offer.tls != Tls::Active && !offer.auth_in_clear {
            self.fail(if offer.tls == Tls::Offered { replies::TLS_FIRST } else { replies::NO_AUTH });
        } else if self.authenticated {
            self.fail(replies::AUTHENTICATED);
        } else if self.transaction.is_some() {
            self.fail(replies::NOT_IN_TRANSACTION);
        } else if self.is_early(rest) {
            return Some(Event::Closed);
        } else if let Some(&mechanism) =
            self.offer.mechanisms.iter().find(|offered| offered.eq_ignore_ascii_case(mechanism))
        {
            let Ok(initial) = initial.map(decode_response).transpose() else {
                self.fail(replies::NOT_BASE64);
                return None;
            };
            self.ask(Question::Auth);
            return Some(Event::Auth { mechanism, initial });
        } else {
            let text = format!("That mechanism is not offered; use {}", self.offer.mechanisms.join(", "));
            self.refuse(&Reply::ours(504, EnhancedCode(5, 5, 4), &text));
        }
        None
    }

    pub(super) fn auth_line<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let (line, consumed) = match self.line(input) {
            Ok(found) => found,
            Err(event) => return (0, event.or(Some(Event::AuthCancelled))),
        };
        if self.is_early(&input[consumed..]) {
            return (consumed, Some(Event::Closed));
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.phase = Phase::Command;
        if line == b"*" {
            self.fail(replies::AUTH_CANCELLED);
            return (consumed, self.closed_event().or(Some(Event::AuthCancelled)));
        }
        match BASE64_STANDARD.decode(line) {
            Ok(response) => {
                self.ask(Question::Auth);
                (consumed, Some(Event::AuthResponse(response)))
            }
            Err(_) => {
                self.fail(replies::NOT_BASE64);
                (consumed, self.closed_event().or(Some(Event::AuthCancelled)))
            }
        }
    }

    pub(super) fn xclient<'i>(&mut self, client: Xclient, rest: &[u8]) -> Option<Event<'i>> {
        if !self.offer.xclient {
            self.fail(replies::NO_XCLIENT);
        } else if self.transaction.is_some() {
            self.fail(replies::NOT_IN_TRANSACTION);
        } else if self.is_early(rest) {
            return Some(Event::Closed);
        } else {
            self.ask(Question::Xclient);
            return Some(Event::Xclient(client));
        }
        None
    }
}

/// RFC 4954 §4: `=` stands for an initial response of no octets.
fn decode_response(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    if text == "=" { Ok(Vec::new()) } else { BASE64_STANDARD.decode(text) }
}
