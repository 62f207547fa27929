//! Content as slices: cutting, joining and counting without copying.

use bytes::Bytes;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::ops::Range;

/// Content in the order in which it goes out. Cloning a piece copies no octets.
pub type Pieces = SmallVec<[Bytes; 4]>;

/// Octets of all pieces.
#[must_use]
pub fn size(content: &[Bytes]) -> usize {
    content.iter().map(Bytes::len).sum()
}

/// Appends the octets of `range` to `out`, as slices. What lies beyond the content is left out.
pub fn slice_into(content: &[Bytes], range: Range<usize>, out: &mut Pieces) {
    let mut start = 0;
    for piece in content {
        let end = start + piece.len();
        let from = range.start.max(start);
        let to = range.end.min(end);
        if from < to {
            out.push(piece.slice(from - start..to - start));
        }
        if end >= range.end {
            return;
        }
        start = end;
    }
}

/// The octets of `range` as slices.
#[must_use]
pub fn slice(content: &[Bytes], range: Range<usize>) -> Pieces {
    let mut out = Pieces::new();
    slice_into(content, range, &mut out);
    out
}

/// The octets of `range` in one place: borrowed when one piece holds them, else copied.
#[must_use]
pub fn gather(content: &[Bytes], range: Range<usize>) -> Cow<'_, [u8]> {
    if range.is_empty() {
        return Cow::Borrowed(&[]);
    }
    let mut start = 0;
    for piece in content {
        let end = start + piece.len();
        if range.start < end {
            if range.end <= end {
                return Cow::Borrowed(&piece[range.start - start..range.end - start]);
            }
            break;
        }
        start = end;
    }
    Cow::Owned(slice(content, range).concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_whatever_the_cuts() {
        let whole = b"abcdefgh";
        for cut in 0..=8 {
            for second in cut..=8 {
                let content = [
                    Bytes::copy_from_slice(&whole[..cut]),
                    Bytes::copy_from_slice(&whole[cut..second]),
                    Bytes::copy_from_slice(&whole[second..]),
                ];
                assert_eq!(size(&content), 8);
                for start in 0..=8 {
                    for end in start..=8 {
                        assert_eq!(slice(&content, start..end).concat(), &whole[start..end]);
                        assert_eq!(&*gather(&content, start..end), &whole[start..end]);
                    }
                }
            }
        }
    }

    #[test]
    fn what_lies_beyond_is_left_out() {
        let content = [Bytes::from_static(b"abc")];
        assert_eq!(slice(&content, 1..9).concat(), b"bc");
        assert_eq!(&*gather(&content, 1..9), b"bc");
    }
}
