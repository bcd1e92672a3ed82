//! A tree with types: raw bytes do not leave this file and the key files.
//!
//! There are no batches. sled frees what its writes leave behind a little with every 128th call, whatever a call does: a
//! stream of batches grows the process by gigabytes, single calls do not.

use super::key::{Key, Value};
use super::{DbError, guard};
use std::marker::PhantomData;
use std::ops::Bound;

/// One tree of the store.
#[derive(Debug)]
pub struct Tree<K, V> {
    name: &'static str,
    sled: sled::Tree,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Key, V: Value> Tree<K, V> {
    pub(super) fn new(name: &'static str, sled: sled::Tree) -> Self {
        Self { name, sled, types: PhantomData }
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Result<Option<V>, DbError> {
        let found = guard(|| self.sled.get(key.encode()))?;
        found.map(|bytes| self.value(&bytes)).transpose()
    }

    /// Sets a value.
    pub fn insert(&self, key: &K, value: &V) -> Result<(), DbError> {
        guard(|| self.sled.insert(key.encode(), value.encode())).map(drop)
    }

    /// Removes a key.
    pub fn remove(&self, key: &K) -> Result<(), DbError> {
        guard(|| self.sled.remove(key.encode())).map(drop)
    }

    /// Removes everything.
    pub fn clear(&self) -> Result<(), DbError> {
        guard(|| self.sled.clear())
    }

    /// Entries from `from` to `to` (both included) in the order of their keys, as long as `take` says so of each.
    pub fn scan(&self, from: &K, to: &K, mut take: impl FnMut(K, V) -> bool) -> Result<(), DbError> {
        let mut entries = self.range(from, to);
        while let Some(entry) = guard(|| entries.next().transpose())? {
            let (key, value) = self.entry(entry)?;
            if !take(key, value) {
                break;
            }
        }
        Ok(())
    }

    /// As [`Tree::scan`], from the last entry backwards.
    pub fn scan_back(&self, from: &K, to: &K, mut take: impl FnMut(K, V) -> bool) -> Result<(), DbError> {
        let mut entries = self.range(from, to);
        while let Some(entry) = guard(|| entries.next_back().transpose())? {
            let (key, value) = self.entry(entry)?;
            if !take(key, value) {
                break;
            }
        }
        Ok(())
    }

    /// Every entry, in order.
    pub fn all(&self) -> Result<Vec<(K, V)>, DbError> {
        let mut entries = self.sled.iter();
        let mut found = Vec::new();
        while let Some(entry) = guard(|| entries.next().transpose())? {
            found.push(self.entry(entry)?);
        }
        Ok(found)
    }

    fn range(&self, from: &K, to: &K) -> sled::Iter {
        self.sled.range((Bound::Included(from.encode()), Bound::Included(to.encode())))
    }

    fn entry(&self, (key, value): (sled::IVec, sled::IVec)) -> Result<(K, V), DbError> {
        let key = K::decode(&key).map_err(|e| DbError::Malformed { tree: self.name, reason: e.0 })?;
        Ok((key, self.value(&value)?))
    }

    fn value(&self, bytes: &[u8]) -> Result<V, DbError> {
        V::decode(bytes).map_err(|e| DbError::Malformed { tree: self.name, reason: e.0 })
    }
}
