//! The buffer on disk: its contract, and what it makes of crashes, failing disks and damaged indexes.

mod contract;
mod damaged_index;
mod failing_disk;
mod killed;
mod large;
mod power_cut;
mod squashed;

use super::*;
use crate::buffer::EveryDatabase;
use crate::buffer::SegmentMeta;
use crate::buffer::contract::{Made, bytes_of, segment};
use crate::buffer::full::{Fold, folded};
use std::collections::HashMap;
use walhub_common::Pos;

const LARGE: u64 = 1 << 30;

pub(super) fn options(dir: &Path, file_bytes: u64) -> Options {
    Options { file_bytes, ..Options::new(dir, LARGE) }
}

pub(super) fn open(options: &Options) -> DiskBuffer {
    DiskBuffer::open(options.clone()).unwrap()
}

pub(super) fn key(name: &str) -> DatabaseKey {
    format!("node/{name}").parse().unwrap()
}

pub(super) fn lane() -> DestinationName {
    DestinationName::new("disk").unwrap()
}

/// The next segment of a database: anyone can make it again from the position before it.
pub(super) fn next(id: DatabaseId, position: Option<Pos>) -> Made {
    let min = position.map_or(1, |p| p.txid.get() + 1);
    let sizes = [[300, 0, 0], [20, 500, 0], [5000, 70, 2000]][usize::try_from(min % 3).unwrap()];
    segment(position, min + min % 2, &sizes[..=usize::try_from(min % 3).unwrap()], id.0 * 1000 + min)
}

/// Every segment held is what was appended, without a hole, up to the position; gives the TXID of that.
pub(super) fn verify(buffer: &DiskBuffer, name: &str) -> u64 {
    let registered = buffer.find(&key(name)).unwrap();
    let (mut position, mut made) = (None, Vec::new());
    while position.map(|p: Pos| p.txid) < registered.position.map(|p| p.txid) {
        let segment = next(registered.id, position);
        position = segment.position();
        made.push(segment);
    }
    assert_eq!(position, registered.position);
    let held = buffer.list(registered.id, None, usize::MAX).unwrap();
    for pair in held.windows(2) {
        assert!(pair[1].meta.range.follows(Some(pair[0].meta.range.max())), "a hole in {name}");
    }
    assert_eq!(held.last().map(|s| s.meta.range.max()), registered.position.map(|p| p.txid));
    for segment in &held {
        let range = segment.meta.range;
        let within =
            |made: &&Made| range.min() <= made.meta.range.min() && made.meta.range.max() <= range.max();
        let made: Vec<&Made> = made.iter().filter(within).collect();
        let (first, last) = (made.first().unwrap().meta, made.last().unwrap().meta);
        assert_eq!((range.min(), range.max()), (first.range.min(), last.range.max()), "{name}");
        assert_eq!(segment.meta, SegmentMeta { range, pre: first.pre, ..last });
        let bytes = bytes_of(buffer, registered.id, segment);
        match &made[..] {
            [one] => assert_eq!(bytes, one.bytes()),
            several => assert_eq!(bytes, folded(several.iter().map(|made| made.bytes())), "{name} {range}"),
        }
    }
    position.map_or(0, |p| p.txid.get())
}

pub(super) async fn append_next(buffer: &DiskBuffer, name: &str) -> Result<Pos, BufferError> {
    let registered = buffer.find(&key(name)).unwrap();
    let made = next(registered.id, registered.position);
    made.append(buffer, registered.id).await?;
    Ok(made.position().unwrap())
}

#[tokio::test]
async fn a_folder_belongs_to_one_buffer_and_stays_with_whoever_lent_it_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let own = options(dir.path(), 20_000);
    let first = open(&own);
    assert!(matches!(DiskBuffer::open(own.clone()), Err(BufferError::InUse(_))));
    first.close().await.unwrap();
    let lock = Arc::new(lock_folder(dir.path()).unwrap());
    let lent = open(&Options { lock: Some(lock.clone()), ..own.clone() });
    lent.close().await.unwrap();
    drop(lent);
    assert!(matches!(DiskBuffer::open(own.clone()), Err(BufferError::InUse(_))), "the lender still writes");
    drop(lock);
    open(&own).close().await.unwrap();
}
