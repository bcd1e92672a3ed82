//! Which file lies in which pack, in memory: about 20 bytes a file, [`MAX_BYTES`] in all.
//!
//! The files of a database are a strand of differences, newest last; most differences are one byte. When all strands
//! together become too long, the oldest packs go *cold*: of each database only the span of packs is remembered in which
//! its cold files lie, and whoever needs one of those reads the indices of these packs again. So memory does not grow
//! with the number of packs but by their number itself (about 50 bytes each).
//!
//! Pure: no I/O.

use super::format::Entry;
use crate::destinations::{FileKey, Listed};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use walhub_common::{DatabaseKey, Level, Txid, TxidRange};

/// Bytes of all strands together: some six million files.
pub const MAX_BYTES: usize = 128 * 1024 * 1024;

/// Where a file lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Number of the pack.
    pub seq: u64,
    /// Its level.
    pub level: Level,
    /// Its transactions.
    pub range: TxidRange,
    /// Where it begins in the pack.
    pub offset: u32,
    /// Its bytes.
    pub length: u32,
    /// Time of its newest transaction, Unix ms.
    pub time_ms: i64,
    /// First bytes of its BLAKE3.
    pub check: u64,
}

impl Place {
    /// Of an entry of pack `seq`.
    pub fn of(seq: u64, entry: &Entry) -> Place {
        Place {
            seq,
            level: entry.key.level,
            range: entry.key.range,
            offset: entry.offset,
            length: entry.length,
            time_ms: entry.time_ms,
            check: check_of(&entry.hash),
        }
    }

    /// As a listing shows it.
    pub fn listed(&self) -> Listed {
        let Place { level, range, length, time_ms, .. } = *self;
        Listed { level, range, size: u64::from(length), time_ms }
    }

    /// The database's file of this name?
    pub fn is(&self, key: &FileKey) -> bool {
        self.level == key.level && self.range == key.range
    }
}

/// The bytes of a hash that a catalog keeps.
pub fn check_of(hash: &[u8; 32]) -> u64 {
    let (first, _) = hash.split_first_chunk().expect("BUG: 32 bytes");
    u64::from_be_bytes(*first)
}

/// See the module doc.
#[derive(Debug)]
pub struct Catalog {
    strands: HashMap<DatabaseKey, Strand>,
    /// Files of each pack that nobody asked to be deleted.
    packs: BTreeMap<u64, u32>,
    cold: BTreeSet<u64>,
    /// Packs without a file, which are still there.
    emptied: BTreeSet<u64>,
    bytes: usize,
    max_bytes: usize,
}

impl Default for Catalog {
    fn default() -> Self {
        Self::bounded(MAX_BYTES)
    }
}

impl Catalog {
    /// With another bound.
    pub fn bounded(max_bytes: usize) -> Self {
        Self {
            strands: HashMap::new(),
            packs: BTreeMap::new(),
            cold: BTreeSet::new(),
            emptied: BTreeSet::new(),
            bytes: 0,
            max_bytes,
        }
    }

    /// The files of pack `seq`; a pack that is known already is not taken twice.
    pub fn add(&mut self, seq: u64, entries: &[Entry]) {
        if self.packs.insert(seq, entries.len() as u32).is_some() {
            return;
        }
        self.weave(seq, entries);
        if self.bytes > self.max_bytes {
            self.cool();
        }
    }

    fn weave(&mut self, seq: u64, entries: &[Entry]) {
        for entry in entries {
            if !self.strands.contains_key(&entry.key.database) {
                self.strands.insert(entry.key.database.clone(), Strand::default());
            }
            let strand = self.strands.get_mut(&entry.key.database).expect("BUG: it is there");
            let before = strand.bytes.len();
            strand.add(Place::of(seq, entry));
            self.bytes = self.bytes + strand.bytes.len() - before;
        }
    }

    /// Packs that are there.
    pub fn packs(&self) -> usize {
        self.packs.len()
    }

    /// Databases that have a file in a pack.
    pub fn databases(&self) -> impl Iterator<Item = &DatabaseKey> {
        self.strands.keys()
    }

    /// The files of a database that are in memory, oldest pack first.
    pub fn files(&self, database: &DatabaseKey) -> Vec<Place> {
        self.strands.get(database).map_or_else(Vec::new, Strand::places)
    }

    /// The newest file of that name in memory.
    pub fn find(&self, key: &FileKey) -> Option<Place> {
        self.files(&key.database).into_iter().rev().find(|place| place.is(key))
    }

    /// The cold packs that may hold files of a database, oldest first.
    pub fn cold(&self, database: &DatabaseKey) -> Vec<u64> {
        match self.strands.get(database).and_then(|strand| strand.cold) {
            Some((first, last)) => self.cold.range(first..=last).copied().collect(),
            None => Vec::new(),
        }
    }

    /// Takes files out whose deletion was asked for. Cold ones stay, until they are thawed and it is asked again.
    pub fn forget(&mut self, keys: &[FileKey]) {
        let mut asked: HashMap<&DatabaseKey, HashSet<(Level, TxidRange)>> = HashMap::new();
        for key in keys {
            asked.entry(&key.database).or_default().insert((key.level, key.range));
        }
        for (database, asked) in asked {
            let Some(strand) = self.strands.get_mut(database) else { continue };
            let (out, kept): (Vec<Place>, Vec<Place>) =
                strand.places().into_iter().partition(|place| asked.contains(&(place.level, place.range)));
            if out.is_empty() {
                continue;
            }
            self.bytes -= strand.bytes.len();
            *strand = Strand { cold: strand.cold, ..Strand::default() };
            kept.into_iter().for_each(|place| strand.append(place));
            self.bytes += strand.bytes.len();
            if strand.bytes.is_empty() && strand.cold.is_none() {
                self.strands.remove(database);
            }
            for Place { seq, .. } in out {
                let files = self.packs.get_mut(&seq).expect("BUG: a file lies in a pack");
                *files -= 1;
                if *files == 0 {
                    self.emptied.insert(seq);
                }
            }
        }
    }

    /// Packs whose every file was asked to be deleted, oldest first.
    pub fn emptied(&self) -> Vec<u64> {
        self.emptied.iter().copied().collect()
    }

    /// The oldest cold pack, when there is room for it.
    pub fn to_thaw(&self) -> Option<u64> {
        let room = self.bytes < self.max_bytes / 2;
        self.cold.first().copied().filter(|_| room)
    }

    /// The files of a cold pack come back into memory: all of them, also those that were forgotten before it went cold.
    pub fn thaw(&mut self, seq: u64, entries: &[Entry]) {
        if self.cold.remove(&seq) {
            // While it was cold no strand had a file of it, so these are all.
            self.packs.insert(seq, entries.len() as u32);
            self.weave(seq, entries);
        }
    }

    /// Pack `seq` was deleted.
    pub fn gone(&mut self, seq: u64) {
        self.packs.remove(&seq);
        self.cold.remove(&seq);
        self.emptied.remove(&seq);
    }

    /// The oldest packs go cold until a quarter of the room is free.
    fn cool(&mut self) {
        let mut weights: BTreeMap<u64, usize> = BTreeMap::new();
        for strand in self.strands.values() {
            for place in strand.places() {
                *weights.entry(place.seq).or_default() += MEAN_BYTES;
            }
        }
        let (mut freed, mut before) = (0, 0);
        for (seq, weight) in weights {
            if freed >= self.max_bytes / 4 {
                break;
            }
            freed += weight;
            before = seq + 1;
            self.cold.insert(seq);
        }
        for strand in self.strands.values_mut() {
            strand.cool(before);
        }
        self.bytes = self.strands.values().map(|strand| strand.bytes.len()).sum();
        tracing::info!(
            cold = self.cold.len(),
            packs = self.packs.len(),
            "the oldest packs left the catalog in memory"
        );
    }
}

/// What a file takes in a strand, about.
const MEAN_BYTES: usize = 20;

/// The files of one database, each as its difference to the one before.
#[derive(Debug, Default)]
struct Strand {
    bytes: Vec<u8>,
    last: Last,
    /// Oldest and newest pack of files that are not in memory.
    cold: Option<(u64, u64)>,
}

/// What the next file differs from.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    seq: u64,
    max: u64,
    time_ms: i64,
}

impl Strand {
    fn add(&mut self, place: Place) {
        if place.seq < self.last.seq {
            // Packs are read in their order; only one that a listing missed comes late.
            let mut places = self.places();
            places.push(place);
            places.sort_by_key(|place| place.seq);
            *self = Strand { cold: self.cold, ..Strand::default() };
            places.into_iter().for_each(|place| self.append(place));
        } else {
            self.append(place);
        }
    }

    fn append(&mut self, place: Place) {
        let (min, max) = (place.range.min().get(), place.range.max().get());
        for value in [
            place.seq - self.last.seq,
            u64::from(place.level.get()),
            zigzag(min.wrapping_sub(self.last.max.wrapping_add(1)) as i64),
            max - min,
            u64::from(place.offset),
            u64::from(place.length),
            zigzag(place.time_ms.wrapping_sub(self.last.time_ms)),
        ] {
            put_varint(&mut self.bytes, value);
        }
        self.bytes.extend_from_slice(&place.check.to_be_bytes());
        self.last = Last { seq: place.seq, max, time_ms: place.time_ms };
    }

    fn places(&self) -> Vec<Place> {
        let (mut rest, mut last, mut places) = (&self.bytes[..], Last::default(), Vec::new());
        while !rest.is_empty() {
            let place = next_place(&mut rest, &last).expect("BUG: a strand is what was appended to it");
            last = Last { seq: place.seq, max: place.range.max().get(), time_ms: place.time_ms };
            places.push(place);
        }
        places
    }

    /// Files of packs below `before` leave the strand.
    fn cool(&mut self, before: u64) {
        let places = self.places();
        let kept = places.partition_point(|place| place.seq < before);
        if kept == 0 {
            return;
        }
        let (first, last) = (places[0].seq, places[kept - 1].seq);
        let cold = self.cold.map_or((first, last), |(a, b)| (a.min(first), b.max(last)));
        *self = Strand { cold: Some(cold), ..Strand::default() };
        places[kept..].iter().for_each(|place| self.append(*place));
        self.bytes.shrink_to_fit();
    }
}

fn next_place(rest: &mut &[u8], last: &Last) -> Option<Place> {
    let seq = last.seq + take_varint(rest)?;
    let level = Level::new(take_varint(rest)? as u8)?;
    let min = last.max.wrapping_add(1).wrapping_add(unzigzag(take_varint(rest)?) as u64);
    let range = TxidRange::new(Txid::new(min)?, Txid::new(min.checked_add(take_varint(rest)?)?)?)?;
    let (offset, length) = (take_varint(rest)? as u32, take_varint(rest)? as u32);
    let time_ms = last.time_ms.wrapping_add(unzigzag(take_varint(rest)?));
    let (check, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(Place { seq, level, range, offset, length, time_ms, check: u64::from_be_bytes(*check) })
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift += 7;
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
