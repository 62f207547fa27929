//! DATA and BDAT: content on its way through.

use super::{Event, Phase, Question, Server, replies};
use crate::data::{Content, ContentRules, Step};
use postrider_model::{BodyKind, EnhancedCode, Reply};
use std::borrow::Cow;

impl Server {
    pub(super) fn content(&self, body: BodyKind, normalises: bool) -> Content {
        Content::new(ContentRules {
            line_size_max_bytes: self.offer.text_line_size_max_bytes,
            normalises,
            binary: body == BodyKind::BinaryMime,
        })
    }

    pub(super) fn begin_data<'i>(&mut self, rest: &[u8]) -> Option<Event<'i>> {
        match self.transaction {
            _ if matches!(self.phase, Phase::BetweenChunks(_)) => self.fail(replies::CHUNKS_BEGUN),
            None => self.fail_with_refusal(replies::MAIL_FIRST),
            Some(open) if open.recipients == 0 => self.fail_with_refusal(replies::NO_RECIPIENTS),
            // RFC 3030 §3: only BDAT can carry it.
            Some(open) if open.body == BodyKind::BinaryMime => self.fail(replies::BINARY_BY_DATA),
            Some(open) => {
                if self.is_early(rest) {
                    return Some(Event::Closed);
                }
                self.output.extend_from_slice(replies::SEND_DATA);
                self.phase = Phase::Data(self.content(open.body, self.offer.lenient));
            }
        }
        None
    }

    pub(super) fn begin_chunk<'i>(&mut self, size_bytes: u64, last: bool) -> Option<Event<'i>> {
        let skip = |refusal| Phase::SkipChunk { rest_bytes: size_bytes, refusal };
        let phase = std::mem::replace(&mut self.phase, Phase::Command);
        self.phase = match (self.transaction, phase) {
            (None, _) => skip(replies::MAIL_FIRST),
            (Some(open), _) if open.recipients == 0 => skip(replies::NO_RECIPIENTS),
            (Some(_), Phase::BetweenChunks(content)) => {
                Phase::Chunk { content, rest_bytes: size_bytes, last }
            }
            (Some(open), _) => {
                Phase::Chunk { content: self.content(open.body, false), rest_bytes: size_bytes, last }
            }
        };
        // Nobody streams a chunk of gigabytes past us that we will not take.
        let (Phase::Chunk { rest_bytes, .. } | Phase::SkipChunk { rest_bytes, .. }) = self.phase else {
            return None;
        };
        let so_far =
            if let Phase::Chunk { content, .. } = &self.phase { content.notes().size_bytes } else { 0 };
        if so_far.saturating_add(rest_bytes) > self.patience_bytes() {
            let reply = self.too_large();
            reply.write_wire(&mut self.output);
            self.phase = Phase::Closed;
        }
        None
    }

    /// Octets of content that are read at most; beyond them the connection is closed.
    pub(super) fn patience_bytes(&self) -> u64 {
        self.offer.message_size_max_bytes.saturating_mul(2).saturating_add(1 << 20)
    }

    /// The refusal of a message beyond the limit.
    #[must_use]
    pub fn too_large(&self) -> Reply {
        let text =
            format!("The message is larger than the {} octets taken here", self.offer.message_size_max_bytes);
        Reply::ours(552, EnhancedCode(5, 3, 4), &text)
    }

    pub(super) fn data<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let Phase::Data(content) = &mut self.phase else { return (0, Some(Event::NeedInput)) };
        let (consumed, step) = content.data(input);
        let event = match step {
            Step::Content(slice) => {
                if content.notes().size_bytes > self.patience_bytes() {
                    let reply = self.too_large();
                    reply.write_wire(&mut self.output);
                    self.phase = Phase::Closed;
                    Event::Closed
                } else {
                    Event::Content(slice)
                }
            }
            Step::End => {
                self.end_content();
                Event::ContentEnd { by_chunks: false }
            }
            Step::NeedInput => Event::NeedInput,
        };
        (consumed, Some(event))
    }

    pub(super) fn chunk<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let Phase::Chunk { content, rest_bytes, last } = &mut self.phase else {
            return (0, Some(Event::NeedInput));
        };
        if *rest_bytes == 0 {
            if *last {
                content.end_of_chunks();
                self.end_content();
                return (0, Some(Event::ContentEnd { by_chunks: true }));
            }
            let content = content.clone();
            self.phase = Phase::Answer(Question::ChunkEnd, Some(content));
            return (0, Some(Event::ChunkEnd));
        }
        if input.is_empty() {
            return (0, Some(Event::NeedInput));
        }
        let size = usize::try_from(*rest_bytes).unwrap_or(usize::MAX).min(input.len());
        *rest_bytes -= size as u64;
        let slice = &input[..size];
        content.chunk(slice);
        (size, Some(Event::Content(Cow::Borrowed(slice))))
    }

    pub(super) fn end_content(&mut self) {
        self.last_notes = *self.notes();
        self.phase = Phase::Answer(Question::ContentEnd, None);
    }

    pub(super) fn skip_chunk<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let Phase::SkipChunk { rest_bytes, refusal } = &mut self.phase else {
            return (0, Some(Event::NeedInput));
        };
        let size = usize::try_from(*rest_bytes).unwrap_or(usize::MAX).min(input.len());
        *rest_bytes -= size as u64;
        if *rest_bytes > 0 {
            return (size, Some(Event::NeedInput));
        }
        let refusal = *refusal;
        self.phase = Phase::Command;
        if [replies::MAIL_FIRST, replies::NO_RECIPIENTS].contains(&refusal) {
            self.fail_with_refusal(refusal);
        } else {
            self.fail(refusal);
        }
        (size, self.closed_event())
    }
}
