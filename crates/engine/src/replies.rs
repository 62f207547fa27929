//! Last replies, each kept once: a dead site says the same to a million recipients.

use postrider_model::{EnhancedCode, Reply};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// A reply's place in [`Replies`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReplyRef(pub(crate) u32);

impl ReplyRef {
    /// Nothing was said yet.
    pub(crate) const NONE: ReplyRef = ReplyRef(u32::MAX);
}

/// What was said and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Said {
    pub(crate) reply: Reply,
    pub(crate) peer: Box<str>,
    /// The attempt's outcome is unknown: a copy may have arrived.
    pub(crate) in_doubt: bool,
}

#[derive(Debug)]
struct Entry {
    said: Arc<Said>,
    uses: u32,
}

/// The table, with counts of use.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    entries: slab::Slab<Entry>,
    by_text: FxHashMap<Arc<Said>, u32>,
}

/// Different replies kept at once; past these only the codes of further ones are kept in memory (their
/// text is in the log). Some receivers put an id of their own into every reply.
const REPLIES_MAX: usize = 1 << 18;

impl Replies {
    /// Keeps what was said, once more.
    pub(crate) fn keep(&mut self, said: Said) -> ReplyRef {
        if let Some(&slot) = self.by_text.get(&said) {
            self.entries[slot as usize].uses += 1;
            return ReplyRef(slot);
        }
        if self.entries.len() >= REPLIES_MAX && !said.peer.is_empty() {
            return self.keep(Said {
                reply: codes_only(&said.reply),
                peer: "".into(),
                in_doubt: said.in_doubt,
            });
        }
        let said = Arc::new(said);
        let slot =
            u32::try_from(self.entries.insert(Entry { said: said.clone(), uses: 1 })).unwrap_or(u32::MAX);
        self.by_text.insert(said, slot);
        ReplyRef(slot)
    }

    /// Gives up one use.
    pub(crate) fn drop(&mut self, reply: ReplyRef) {
        let Some(entry) = self.entries.get_mut(reply.0 as usize) else { return };
        entry.uses -= 1;
        if entry.uses == 0 {
            let entry = self.entries.remove(reply.0 as usize);
            self.by_text.remove(&entry.said);
        }
    }

    pub(crate) fn get(&self, reply: ReplyRef) -> Option<&Arc<Said>> {
        self.entries.get(reply.0 as usize).map(|entry| &entry.said)
    }
}

fn codes_only(reply: &Reply) -> Reply {
    let enhanced = reply.enhanced().unwrap_or(EnhancedCode(4, 0, 0));
    Reply::ours(reply.code(), enhanced, "(the text is in the event journal: too many different replies)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_replies_are_kept_once_and_dropped_with_the_last_use() {
        let said = |text: &str| Said {
            reply: Reply::ours(450, EnhancedCode(4, 2, 0), text),
            peer: "mx[192.0.2.1]:25".into(),
            in_doubt: false,
        };
        let mut replies = Replies::default();
        let (a, b, c) = (replies.keep(said("a")), replies.keep(said("a")), replies.keep(said("c")));
        assert_eq!(a, b);
        assert_ne!(a, c);
        replies.drop(a);
        assert_eq!(replies.get(b).unwrap().reply.text(), "a");
        replies.drop(b);
        assert!(replies.get(b).is_none());
        replies.drop(ReplyRef::NONE);
        assert_eq!(replies.entries.len(), 1);
    }
}
