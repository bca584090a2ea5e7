//! A cache of values that several sources share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values that are made once for all who need the same, and kept as long as anybody does.
pub(super) struct Shared<K, V>(Mutex<BTreeMap<K, Weak<V>>>);

impl<K: Ord, V> Shared<K, V> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// The one of this key, made now if there is none.
    pub(super) fn get<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = all.get(&key).and_then(Weak::upgrade) {
            return Ok(there);
        }
        let new = Arc::new(make()?);
        all.retain(|_, other| other.strong_count() > 0);
        all.insert(key, Arc::downgrade(&new));
        Ok(new)
    }
}
