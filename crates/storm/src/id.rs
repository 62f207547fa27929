//! Numbers that follow a message through the relay, and the addresses that carry them.

/// One message: 24 bits that tell runs apart, then the message's place in its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u64);

/// Bits of an [`Id`] below the run.
const SEQUENCE_BITS: u32 = 40;
const HEX: &[u8; 16] = b"0123456789abcdef";

impl Id {
    /// Octets of the printed form.
    pub const HEX_LEN: usize = 16;

    /// The message at a place of a run. Only 24 bits of the run and 40 of the place count.
    #[must_use]
    pub fn new(run: u64, sequence: u64) -> Id {
        Id(run << SEQUENCE_BITS | sequence & ((1 << SEQUENCE_BITS) - 1))
    }

    /// Place in the run, from 0.
    #[must_use]
    pub fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }

    /// Sixteen lower-case hexadecimal digits.
    #[must_use]
    pub fn hex(self) -> [u8; Self::HEX_LEN] {
        let mut out = [0; Self::HEX_LEN];
        for (octet, pair) in self.0.to_be_bytes().into_iter().zip(out.chunks_exact_mut(2)) {
            pair[0] = HEX[usize::from(octet >> 4)];
            pair[1] = HEX[usize::from(octet & 15)];
        }
        out
    }

    /// Reads [`Id::hex`]; `None` for anything else. Upper case is taken too, since relays may fold case.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Id> {
        (text.len() == Self::HEX_LEN).then(|| parse_hex(text).map(Id)).flatten()
    }
}

/// Reads up to 16 hexadecimal digits.
pub(crate) fn parse_hex(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

/// Appends a number in decimal digits, without the formatting machinery: several are written per message.
pub(crate) fn push_decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // Invariant: a remainder of ten fits an octet.
        digits[at] = b'0' + u8::try_from(value % 10).expect("a digit");
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends the address of the recipient at `index` of a message: `r<index>.<id>@<domain>`.
///
/// Every recipient of a run has an address of its own, as in real traffic; and a list of addresses that a relay
/// still holds names messages without any map.
pub fn push_address(out: &mut Vec<u8>, id: Id, index: u16, domain: &str) {
    out.push(b'r');
    push_decimal(out, u64::from(index));
    out.push(b'.');
    out.extend_from_slice(&id.hex());
    out.push(b'@');
    out.extend_from_slice(domain.as_bytes());
}

/// Reads an address made by [`push_address`]: message and index.
#[must_use]
pub fn parse_address(address: &[u8]) -> Option<(Id, u16)> {
    let (first, rest) = address.split_first()?;
    let dot = memchr::memchr(b'.', rest)?;
    let index = std::str::from_utf8(&rest[..dot]).ok()?.parse().ok()?;
    let id = Id::parse(rest.get(dot + 1..dot + 1 + Id::HEX_LEN)?)?;
    (first.eq_ignore_ascii_case(&b'r') && rest.get(dot + 1 + Id::HEX_LEN) == Some(&b'@'))
        .then_some((id, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_message_and_index() {
        let mut address = Vec::new();
        push_address(&mut address, Id::new(0xabcdef, 77), 12, "example.test");
        assert_eq!(address, b"r12.abcdef000000004d@example.test");
        assert_eq!(parse_address(&address), Some((Id::new(0xabcdef, 77), 12)));
        assert_eq!(parse_address(&address.to_ascii_uppercase()), Some((Id::new(0xabcdef, 77), 12)));
    }

    #[test]
    fn other_addresses_are_not_ours() {
        for other in
            ["", "r", "r1", "r1.@x", "someone@example.test", "r1.abcdef000000004@x", "r1.abcdef000000004d"]
        {
            assert_eq!(parse_address(other.as_bytes()), None, "{other}");
        }
    }
}
