//! Numbers inside, ids outside.
//!
//! Inside the relay a message is a number and a recipient an ordinal within it. Outside both are UUIDv7
//! (RFC 9562 §5.7) with a prefix. The 74 random bits of the UUID carry number and ordinal under a keyed
//! permutation, so that an id leads to its place without a map and tells nobody how many messages we sent.

// The casts below cut masked halves out of wider integers.
#![allow(clippy::cast_possible_truncation)]

use crate::Timestamp;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A message's number: unique for the life of the data directory, ascending within a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageNo(pub u64);

/// The place of a recipient among its message's recipients, from 0.
pub type Ordinal = u16;

/// The id of a message as the API prints it: `msg_` and a UUIDv7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(u128);

/// The id of a recipient as the API prints it: `rcp_` and a UUIDv7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecipientId(u128);

/// Why a text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdError {
    /// The prefix is missing or another one.
    #[error("an id of this kind starts with {0}")]
    Prefix(&'static str),
    /// What follows the prefix is no UUID.
    #[error("what follows the prefix is not a UUID")]
    Uuid,
    /// A UUID that this instance did not make.
    #[error("no such id: this relay did not make it")]
    Foreign,
}

/// Turns numbers into ids and back, under a key of the instance.
#[derive(Clone)]
pub struct IdCipher {
    round_keys: [u64; ROUNDS],
}

const ROUNDS: usize = 6;
const NUMBER_BITS: u32 = 57;
const HALF_BITS: u32 = 37;
const HALF_MASK: u64 = (1 << HALF_BITS) - 1;
/// The ordinal that stands for the message itself in the permuted bits (17 bits, one more than a `u16`).
const WHOLE_MESSAGE: u64 = 1 << 16;

impl IdCipher {
    /// With the instance's secret key.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        let mut round_keys = [0; ROUNDS];
        let halves = [
            u64::from_le_bytes([key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7]]),
            u64::from_le_bytes([key[8], key[9], key[10], key[11], key[12], key[13], key[14], key[15]]),
        ];
        let mut state = halves[0];
        for (i, round_key) in round_keys.iter_mut().enumerate() {
            state = mix(state ^ halves[i % 2].rotate_left(u32::try_from(i).unwrap_or(0) * 9));
            *round_key = state;
        }
        IdCipher { round_keys }
    }

    /// The id of a message accepted at `time`.
    #[must_use]
    pub fn message(&self, time: Timestamp, number: MessageNo) -> MessageId {
        MessageId(self.seal(time, number, WHOLE_MESSAGE))
    }

    /// The id of one of its recipients.
    #[must_use]
    pub fn recipient(&self, time: Timestamp, number: MessageNo, ordinal: Ordinal) -> RecipientId {
        RecipientId(self.seal(time, number, u64::from(ordinal)))
    }

    /// The number behind a message's id.
    ///
    /// # Errors
    /// When this instance did not make the id.
    pub fn open_message(&self, id: MessageId) -> Result<MessageNo, IdError> {
        match self.open(id.0) {
            (number, WHOLE_MESSAGE) => Ok(number),
            _ => Err(IdError::Foreign),
        }
    }

    /// The number and ordinal behind a recipient's id.
    ///
    /// # Errors
    /// When this instance did not make the id.
    pub fn open_recipient(&self, id: RecipientId) -> Result<(MessageNo, Ordinal), IdError> {
        let (number, ordinal) = self.open(id.0);
        Ok((number, Ordinal::try_from(ordinal).map_err(|_| IdError::Foreign)?))
    }

    fn seal(&self, time: Timestamp, number: MessageNo, ordinal: u64) -> u128 {
        let plain = (u128::from(number.0) << 17 | u128::from(ordinal)) & ((1 << 74) - 1);
        debug_assert!(number.0 < 1 << NUMBER_BITS);
        let mut left = (plain >> HALF_BITS) as u64 & HALF_MASK;
        let mut right = (plain & u128::from(HALF_MASK)) as u64;
        for key in self.round_keys {
            (left, right) = (right, left ^ (mix(right ^ key) & HALF_MASK));
        }
        let random = u128::from(left) << HALF_BITS | u128::from(right);
        uuid_v7(time, random)
    }

    fn open(&self, id: u128) -> (MessageNo, u64) {
        let random = (id >> 64 & 0xfff) << 62 | id & ((1 << 62) - 1);
        let mut left = (random >> HALF_BITS) as u64 & HALF_MASK;
        let mut right = (random & u128::from(HALF_MASK)) as u64;
        for key in self.round_keys.iter().rev() {
            (left, right) = (right ^ (mix(left ^ key) & HALF_MASK), left);
        }
        let plain = u128::from(left) << HALF_BITS | u128::from(right);
        (MessageNo((plain >> 17) as u64), (plain & 0x1ffff) as u64)
    }
}

impl fmt::Debug for IdCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdCipher")
    }
}

/// The finaliser of SplitMix64: every bit of the input changes about half of the output.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A UUIDv7 (RFC 9562 §5.7) around 74 bits.
fn uuid_v7(time: Timestamp, random: u128) -> u128 {
    let millis = u128::from(time.as_millis()) & ((1 << 48) - 1);
    millis << 80 | 7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & ((1 << 62) - 1)
}

fn write_uuid(f: &mut fmt::Formatter<'_>, prefix: &str, id: u128) -> fmt::Result {
    write!(
        f,
        "{prefix}{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        id >> 96,
        id >> 80 & 0xffff,
        id >> 64 & 0xffff,
        id >> 48 & 0xffff,
        id & 0xffff_ffff_ffff
    )
}

fn parse_uuid(text: &str, prefix: &'static str) -> Result<u128, IdError> {
    let uuid = text.strip_prefix(prefix).ok_or(IdError::Prefix(prefix))?;
    let dashes_stand = uuid.len() == 36
        && uuid.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
    if !dashes_stand {
        return Err(IdError::Uuid);
    }
    u128::from_str_radix(&uuid.replace('-', ""), 16).map_err(|_| IdError::Uuid)
}

macro_rules! printed_id {
    ($id:ident, $prefix:literal) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(f, $prefix, self.0)
            }
        }
        impl FromStr for $id {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_uuid(text, $prefix).map($id)
            }
        }
        impl serde::Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

printed_id!(MessageId, "msg_");
printed_id!(RecipientId, "rcp_");

/// An id that leads to a row of the store: a UUIDv7 of random bits.
macro_rules! stored_id {
    ($(#[$doc:meta])* $id:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $id(u128);

        impl $id {
            /// A new one; `random` must be.
            #[must_use]
            pub fn new(time: Timestamp, random: u128) -> Self {
                $id(uuid_v7(time, random & ((1 << 74) - 1)))
            }
        }

        printed_id!($id, $prefix);
        crate::text::text_deserialize!($id);
    };
}

stored_id!(
    /// The id of a tenant: `tnt_` and a UUIDv7.
    TenantId, "tnt_"
);
stored_id!(
    /// The id of an application: `app_` and a UUIDv7.
    ApplicationId, "app_"
);
stored_id!(
    /// The id of an SMTP credential: `crd_` and a UUIDv7.
    CredentialId, "crd_"
);
stored_id!(
    /// The id of an API key: `key_` and a UUIDv7.
    KeyId, "key_"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_leads_back_to_its_number(key: [u8; 16], number in 0u64..1 << NUMBER_BITS, ordinal: u16, ms in 0u64..1 << 47) {
            let cipher = IdCipher::new(key);
            let time = Timestamp::from_micros(ms * 1000);
            let id = cipher.recipient(time, MessageNo(number), ordinal);
            let printed = id.to_string();
            prop_assert_eq!(&printed[4 + 14..4 + 15], "7");
            prop_assert!("89ab".contains(&printed[4 + 19..4 + 20]));
            prop_assert_eq!(cipher.open_recipient(printed.parse().unwrap()), Ok((MessageNo(number), ordinal)));
            let id = cipher.message(time, MessageNo(number));
            prop_assert_eq!(cipher.open_message(id.to_string().parse().unwrap()), Ok(MessageNo(number)));
        }
    }

    #[test]
    fn what_is_no_id_says_why() {
        let check = |text: &str, error| assert_eq!(text.parse::<MessageId>(), Err(error), "{text}");
        check("rcp_00000000-0000-7000-8000-000000000000", IdError::Prefix("msg_"));
        check("msg_00000000-0000-7000-8000-00000000000", IdError::Uuid);
        check("msg_00000000-0000-7000-8000-00000000000g", IdError::Uuid);
        check("msg_+0000000-0000-7000-8000-000000000000", IdError::Uuid);
    }
}
