//! How other threads talk to an event loop.

use mio::Waker;
use std::sync::{Arc, Mutex, PoisonError};

/// A list of letters and the bell that says there are some. Cloned freely.
pub(crate) struct Inbox<T> {
    letters: Arc<Mutex<Vec<T>>>,
    waker: Arc<Waker>,
}

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Inbox { letters: self.letters.clone(), waker: self.waker.clone() }
    }
}

impl<T> Inbox<T> {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Inbox { letters: Arc::default(), waker }
    }

    /// Puts a letter in; rings only if the inbox was empty, since the loop empties it whole.
    pub(crate) fn send(&self, letter: T) {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = letters.is_empty();
        letters.push(letter);
        drop(letters);
        if was_empty {
            // A waker fails only when its loop is gone; then nobody reads the letter either.
            let _ = self.waker.wake();
        }
    }

    /// Rings without a letter.
    pub(crate) fn ring(&self) {
        let _ = self.waker.wake();
    }

    /// Takes all letters, leaving `into`'s room for the next ones.
    pub(crate) fn take(&self, into: &mut Vec<T>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.letters.lock().unwrap_or_else(PoisonError::into_inner), into);
    }
}
