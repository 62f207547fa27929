//! The last words of a session, for a person who asks why.

/// Octets kept of a session's beginning: greeting, EHLO, TLS, AUTH.
const HEAD_SIZE_MAX: usize = 2 << 10;
/// Octets kept of its end.
const TAIL_SIZE_MAX: usize = 2 << 10;
/// Octets kept of a line.
const LINE_SIZE_MAX: usize = 256;

/// A bounded record of a session in lines of `C:` and `S:`: its beginning and its end. Content and
/// credentials are never in it.
#[derive(Debug, Default)]
pub struct Transcript {
    head: Vec<u8>,
    tail: Vec<u8>,
    left_out: bool,
}

impl Transcript {
    /// Commands as they were sent, with their CRLF.
    pub fn client(&mut self, commands: &[u8]) {
        for line in commands.split_inclusive(|&b| b == b'\n') {
            self.line(b"C: ", line);
        }
    }

    /// A reply's code and text, its lines joined by LF.
    pub fn server(&mut self, code: u16, text: &[u8]) {
        let digits = [100, 10, 1].map(|unit| b'0' + u8::try_from(code / unit % 10).unwrap_or(0));
        for line in text.split(|&b| b == b'\n') {
            let [a, b, c] = digits;
            self.line(&[b'S', b':', b' ', a, b, c, b' '], line);
        }
    }

    /// A remark of ours, such as that TLS started.
    pub fn note(&mut self, text: &str) {
        self.line(b"-- ", text.as_bytes());
    }

    /// The whole as text, control characters as spaces.
    #[must_use]
    pub fn text(&self) -> String {
        let gap: &[u8] = if self.left_out { b"...\n" } else { b"" };
        let all = [self.head.as_slice(), gap, &self.tail].concat();
        String::from_utf8_lossy(&all).replace(|c: char| c.is_control() && c != '\n', " ")
    }

    fn line(&mut self, prefix: &[u8], line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = &line[..line.len().min(LINE_SIZE_MAX)];
        let to_head = self.tail.is_empty() && self.head.len() + prefix.len() + line.len() < HEAD_SIZE_MAX;
        let into = if to_head { &mut self.head } else { &mut self.tail };
        into.extend_from_slice(prefix);
        into.extend_from_slice(line);
        into.push(b'\n');
        // Cut at twice the size, so that the cost of cutting is spread over many lines.
        if self.tail.len() > 2 * TAIL_SIZE_MAX {
            let from = self.tail.len() - TAIL_SIZE_MAX;
            let cut = memchr::memchr(b'\n', &self.tail[from..]).map_or(from, |i| from + i + 1);
            self.tail.drain(..cut);
            self.left_out = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_and_end_of_a_long_session_are_kept() {
        let mut transcript = Transcript::default();
        transcript.server(220, b"mx.example ready");
        transcript.client(b"EHLO us.example\r\n");
        for i in 0..10_000 {
            transcript.client(format!("MAIL FROM:<{i}@example.com>\r\n").as_bytes());
            transcript.server(250, b"2.1.0 fine");
        }
        let text = transcript.text();
        assert!(text.starts_with("S: 220 mx.example ready\nC: EHLO us.example\n"), "{text}");
        assert!(text.ends_with("C: MAIL FROM:<9999@example.com>\nS: 250 2.1.0 fine\n"), "{text}");
        assert!(text.contains("\n...\n") && text.len() < HEAD_SIZE_MAX + 2 * TAIL_SIZE_MAX + 600);
    }

    #[test]
    fn hostile_lines_are_short_and_printable() {
        let mut transcript = Transcript::default();
        transcript.server(550, &[b"a\x1b\0".as_slice(), &[b'x'; 5000]].concat());
        transcript.server(250, b"a\nb");
        let text = transcript.text();
        assert!(text.starts_with("S: 550 a  xxx") && text.ends_with("S: 250 a\nS: 250 b\n"));
        assert!(text.len() < 400);
    }
}
