//! Where a record is, and in which order it came.

use std::fmt;
use std::num::NonZeroU64;

/// The log's sequence number: durable records are numbered without gaps. The numbers of a batch whose sync
/// failed are given again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

/// The caller's number for an append. Tickets of one shard rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Which filling of a segment. Rises with every segment prepared, is part of every checksum.
pub type Generation = u32;

/// The highest generation; at 64 MiB a segment that is 17 exabytes written.
pub const GENERATION_MAX: Generation = (1 << GENERATION_BITS) - 1;

const GENERATION_BITS: u32 = 28;
const UNIT_BITS: u32 = 27;
const CLASS_BITS: u32 = 9;
/// Records start at multiples of this.
pub(crate) const UNIT_BYTES: u32 = 8;
/// The largest segment a position can address.
pub const SEGMENT_SIZE_MAX_BYTES: u32 = 1 << (UNIT_BITS + 3);

/// The place of a record that keeps content. Ordered as the log is; opaque but for the log and its readers.
///
/// It holds the generation, the offset and the record's size to within a sixteenth, so that accounting
/// needs no look at the disk. It is eight bytes, as is an `Option` of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(NonZeroU64);

impl Position {
    pub(crate) fn new(generation: Generation, offset: u32, size: u32) -> Self {
        debug_assert!(generation > 0 && generation <= GENERATION_MAX && offset.is_multiple_of(UNIT_BYTES));
        let unit = u64::from(offset / UNIT_BYTES);
        let bits = u64::from(generation) << (UNIT_BITS + CLASS_BITS)
            | unit << CLASS_BITS
            | u64::from(size_class(size));
        // Invariant: generations start at 1.
        Self(NonZeroU64::new(bits).expect("generation is never zero"))
    }

    /// As a number, for a checkpoint.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0.get()
    }

    /// From [`Self::as_u64`]; `None` for zero.
    #[must_use]
    pub fn from_u64(bits: u64) -> Option<Self> {
        (bits >> (UNIT_BITS + CLASS_BITS) != 0).then(|| NonZeroU64::new(bits).map(Self)).flatten()
    }

    /// The filling of the segment it lies in.
    #[must_use]
    pub fn generation(self) -> Generation {
        u32::try_from(self.0.get() >> (UNIT_BITS + CLASS_BITS)).unwrap_or(GENERATION_MAX)
    }

    /// Octets from the segment's start to the record's header.
    #[must_use]
    pub fn offset(self) -> u32 {
        let unit = self.0.get() >> CLASS_BITS & ((1 << UNIT_BITS) - 1);
        u32::try_from(unit).unwrap_or(0) * UNIT_BYTES
    }

    /// About how many octets the record takes: never more than it does, at most a sixteenth less.
    #[must_use]
    pub fn size(self) -> u32 {
        let class = u32::try_from(self.0.get() & ((1 << CLASS_BITS) - 1)).unwrap_or(0);
        (16 + (class & 15)) << (class >> 4)
    }
}

/// Four bits of mantissa, the rest exponent, rounded down.
fn size_class(size: u32) -> u32 {
    let size = size.clamp(16, SEGMENT_SIZE_MAX_BYTES);
    let exponent = 27 - size.leading_zeros();
    exponent << 4 | (size >> exponent & 15)
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", self.generation(), self.offset())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_position_holds_its_place_and_about_its_size(
            generation in 1..=GENERATION_MAX, unit in 0..1u32 << UNIT_BITS, size in 16..=SEGMENT_SIZE_MAX_BYTES
        ) {
            let offset = unit * UNIT_BYTES;
            let position = Position::new(generation, offset, size);
            prop_assert_eq!(position.generation(), generation);
            prop_assert_eq!(position.offset(), offset);
            prop_assert!(position.size() <= size && position.size() >= size - size / 16);
            prop_assert_eq!(Position::from_u64(position.as_u64()), Some(position));
        }
    }

    #[test]
    fn zero_is_no_position() {
        assert_eq!(Position::from_u64(0), None);
        assert_eq!(Position::from_u64(77), None);
    }
}
