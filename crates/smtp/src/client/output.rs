//! What a client has to write: commands and slices of content in order, for one vectored write.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;

/// Content slices shorter than this are copied: a vectored write costs more per slice than a copy.
const COPY_SIZE_MAX: usize = 256;
/// Written octets of small chunks kept at the front before they are cut off.
const WRITTEN_SIZE_MAX: usize = 16 << 10;

/// Octets to be written: small ones in one buffer, content as the slices that it is.
#[derive(Debug, Default)]
pub struct Output {
    /// The octets of all small chunks in order; those before `written` are done with.
    small: Vec<u8>,
    written: usize,
    chunks: VecDeque<Chunk>,
    len: usize,
    queued_in_all: u64,
}

#[derive(Debug)]
enum Chunk {
    /// So many octets of `small`.
    Small(usize),
    Content(Bytes),
}

impl Output {
    /// Nothing is left to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Octets left to write.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Octets ever put in.
    #[must_use]
    pub fn queued_in_all(&self) -> u64 {
        self.queued_in_all
    }

    /// Octets ever written.
    #[must_use]
    pub fn written_in_all(&self) -> u64 {
        self.queued_in_all - self.len as u64
    }

    /// The octets in order, to be written by one vectored write.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = self.written;
        self.chunks.iter().map(move |chunk| match chunk {
            Chunk::Small(len) => {
                at += len;
                &self.small[at - len..at]
            }
            Chunk::Content(bytes) => bytes,
        })
    }

    /// Notes that `n` octets of the front were written.
    ///
    /// # Panics
    /// Never: more than there is counts as all.
    pub fn advance(&mut self, n: usize) {
        let mut n = n.min(self.len);
        self.len -= n;
        while n > 0 {
            let Some(front) = self.chunks.front_mut() else { break };
            match front {
                Chunk::Small(len) if *len > n => {
                    *len -= n;
                    self.written += n;
                    return;
                }
                Chunk::Content(bytes) if bytes.len() > n => {
                    bytes.advance(n);
                    return;
                }
                Chunk::Small(len) => {
                    n -= *len;
                    self.written += *len;
                }
                Chunk::Content(bytes) => n -= bytes.len(),
            }
            self.chunks.pop_front();
        }
        if self.len == 0 {
            self.small.clear();
            self.written = 0;
        } else if self.written > WRITTEN_SIZE_MAX {
            self.small.drain(..self.written);
            self.written = 0;
        }
    }

    /// Appends what `write` appends, and gives it back to look at.
    pub fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        let start = self.small.len();
        write(&mut self.small);
        let len = self.small.len().saturating_sub(start);
        self.grow(len);
        match self.chunks.back_mut() {
            Some(Chunk::Small(last)) => *last += len,
            _ if len == 0 => {}
            _ => self.chunks.push_back(Chunk::Small(len)),
        }
        &self.small[start..]
    }

    /// Appends content; it is not copied unless it is short.
    pub fn content(&mut self, bytes: Bytes) {
        if bytes.len() < COPY_SIZE_MAX {
            self.write(|out| out.extend_from_slice(&bytes));
        } else {
            self.grow(bytes.len());
            self.chunks.push_back(Chunk::Content(bytes));
        }
    }

    fn grow(&mut self, len: usize) {
        self.len += len;
        self.queued_in_all += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(output: &Output) -> Vec<u8> {
        output.slices().collect::<Vec<_>>().concat()
    }

    #[test]
    fn content_is_not_copied_and_commands_share_a_buffer() {
        let body = Bytes::from(vec![b'x'; 1000]);
        let mut output = Output::default();
        output.write(|out| out.extend_from_slice(b"DATA\r\n"));
        output.content(body.clone());
        output.write(|out| out.extend_from_slice(b".\r\n"));
        output.write(|out| out.extend_from_slice(b"QUIT\r\n"));
        let slices: Vec<&[u8]> = output.slices().collect();
        assert_eq!(slices.len(), 3);
        assert_eq!(slices[1].as_ptr(), body.as_ptr());
        assert_eq!(slices[2], b".\r\nQUIT\r\n");
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_however_it_is_written(
            steps in proptest::collection::vec((any::<bool>(), 0usize..600, 0usize..900), 1..60)
        ) {
            let (mut output, mut expected, mut found) = (Output::default(), Vec::new(), Vec::new());
            let mut byte = 0u8;
            for (small, len, n) in steps {
                let bytes: Vec<u8> = (0..len).map(|_| { byte = byte.wrapping_add(1); byte }).collect();
                expected.extend_from_slice(&bytes);
                if small { output.write(|out| out.extend_from_slice(&bytes)); } else { output.content(bytes.into()); }
                let all = whole(&output);
                prop_assert_eq!(all.len(), output.len());
                found.extend_from_slice(&all[..n.min(all.len())]);
                output.advance(n);
            }
            found.extend_from_slice(&whole(&output));
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(output.queued_in_all(), expected.len() as u64);
            output.advance(usize::MAX);
            prop_assert!(output.is_empty() && output.written_in_all() == output.queued_in_all());
        }
    }
}
