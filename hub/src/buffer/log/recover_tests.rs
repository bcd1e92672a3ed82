//! The log after every kind of damage, byte by byte. No index here: what recovery tells one is collected.

use super::*;
use crate::buffer::contract::{Made, segment};
use crate::buffer::log::head::DatabaseHead;
use crate::buffer::log::reader::SegmentReader;
use crate::buffer::log::record::Payload;
use crate::buffer::log::snapshot::DatabaseState;
use crate::buffer::log::writer::{Item, Writer};
use crate::buffer::{DatabaseId, SegmentRef};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use walhub_common::Pos;

#[derive(Default)]
struct Collected {
    plan: Option<IndexPlan>,
    segments: Vec<(DatabaseId, SegmentRef)>,
}

impl Indexer for Collected {
    fn plan(&mut self, plan: IndexPlan) -> Result<(), BufferError> {
        self.plan = Some(plan);
        Ok(())
    }

    fn segment(&mut self, written: Written) -> Result<(), BufferError> {
        let within = |(id, held): &(DatabaseId, SegmentRef)| {
            let (old, new) = (held.meta.range, written.segment.meta.range);
            *id == written.database && new.min() <= old.min() && old.max() <= new.max()
        };
        if written.rewritten {
            self.segments.retain(|held| !within(held));
        }
        self.segments.push((written.database, written.segment));
        Ok(())
    }
}

const A: DatabaseId = DatabaseId(1);
const B: DatabaseId = DatabaseId(2);

/// A log of two databases, written group by group.
struct Log {
    dir: TempDir,
    files: Arc<Files>,
    writer: Writer,
    state: State,
    made: Vec<(DatabaseId, Made)>,
    /// File and end after each group.
    ends: Vec<(u64, u64)>,
}

impl Log {
    fn new(file_bytes: u64) -> Log {
        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(Files::open(dir.path(), Probe::default()).unwrap());
        let writer = Writer::new(Arc::clone(&files), Probe::default(), 99, 0, file_bytes);
        let mut log = Log { dir, files, writer, state: State::default(), made: Vec::new(), ends: Vec::new() };
        for (id, name) in [(A, "node/a"), (B, "node/b")] {
            let path = format!("/srv/{name}");
            let head = DatabaseHead { id, lineage: 40 + id.0, key: name.parse().unwrap(), path };
            let state = log.state.clone();
            log.writer.write(&[Item::Database(&head)], true, || state).unwrap();
            log.state.databases.insert(id, DatabaseState { head, position: None, time_ms: 0 });
            log.state.next_id = id.0 + 1;
        }
        log
    }

    fn position(&self, id: DatabaseId) -> Option<Pos> {
        self.state.databases[&id].position
    }

    /// One group of segments, synced.
    fn group(&mut self, ids: &[DatabaseId], sizes: &[usize]) {
        let before = self.state.clone();
        let mut chunks = Vec::new();
        for id in ids {
            let min = self.position(*id).map_or(1, |p| p.txid.get() + 1);
            let made = segment(self.position(*id), min, sizes, id.0);
            let database = self.state.databases.get_mut(id).unwrap();
            (database.position, database.time_ms) = (made.position(), made.meta.time_ms);
            chunks.extend((0..made.chunks.len()).map(|n| made.chunk(*id, n)));
            self.made.push((*id, made));
        }
        let items: Vec<_> = chunks.iter().map(|c| Item::Chunk(c, Payload::of(&c.data))).collect();
        self.writer.write(&items, true, || before).unwrap();
        let end = self.writer.end().unwrap();
        self.ends.push((end.file, end.offset));
    }

    fn path(&self, number: u64) -> PathBuf {
        self.files.path(number)
    }

    fn recover(&self) -> (Recovered, Collected, Files) {
        recover_in(self.dir.path())
    }

    /// The bytes of every segment found are those that were appended.
    fn check(&self, files: &Files, found: &Collected) -> usize {
        let mut corrupt = 0;
        for (id, segment) in &found.segments {
            let made = self.made.iter().find(|(of, made)| of == id && made.meta == segment.meta);
            let (_, made) = made.expect("a segment that nobody made");
            let mut bytes = Vec::new();
            match SegmentReader::open(files, *id, segment).map(|mut r| r.read_to_end(&mut bytes)) {
                Ok(Ok(_)) => assert_eq!(bytes, made.bytes()),
                Ok(Err(e)) if e.kind() == io::ErrorKind::InvalidData => corrupt += 1,
                Err(BufferError::Corrupt { .. }) => corrupt += 1,
                other => panic!("{other:?}"),
            }
        }
        corrupt
    }
}

fn recover_in(dir: &Path) -> (Recovered, Collected, Files) {
    let files = Files::open(dir, Probe::default()).unwrap();
    let mut found = Collected::default();
    let recovered = recover(&files, &Probe::default(), None, &mut found).unwrap();
    (recovered, found, files)
}

fn txids(state: &State) -> [u64; 2] {
    [A, B].map(|id| state.databases[&id].position.map_or(0, |p| p.txid.get()))
}

#[test]
fn a_whole_log_comes_back_from_any_number_of_files() {
    for file_bytes in [500, 3_000, 1 << 20] {
        let mut log = Log::new(file_bytes);
        for round in 0..20 {
            log.group(&[A, B, A], &[100 + round, 3000, 0]);
        }
        let (recovered, found, files) = log.recover();
        assert_eq!(recovered.state, log.state, "{file_bytes}");
        assert_eq!(found.segments.len(), 60);
        assert_eq!(log.check(&files, &found), 0);
        assert_eq!(found.plan, Some(IndexPlan { rebuild: true, cursors_are_newer: false }));
    }
}

#[test]
fn every_suffix_of_the_files_knows_all_databases() {
    let mut log = Log::new(3_000);
    for _ in 0..10 {
        log.group(&[A, B], &[2000, 2000]);
    }
    let numbers = log.files.numbers();
    assert!(numbers.len() > 4, "{numbers:?}");
    for gone in &numbers[..numbers.len() - 1] {
        fs::remove_file(log.path(*gone)).unwrap();
        let (recovered, found, files) = log.recover();
        assert_eq!(recovered.state, log.state);
        assert_eq!(log.check(&files, &found), 0);
        assert!(found.segments.iter().all(|(_, s)| s.place.first.0 > *gone), "what is cut is not told");
    }
}

/// What may lie behind the point where a power cut stopped the writing: nothing, zeros, garbage, or, in the group that
/// was being written, a hole before bytes that did arrive.
fn tails(whole: &[u8], cut: usize, last_group: usize) -> Vec<Vec<u8>> {
    let kept = &whole[..cut];
    let rest = whole.len() - cut;
    let garbage: Vec<u8> = (0..rest).map(|n| (n * 37 + cut) as u8 | 1).collect();
    let mut tails = vec![kept.to_vec(), [kept, &vec![0; rest]].concat(), [kept, &garbage].concat()];
    if cut >= last_group {
        let mut hole = whole.to_vec();
        hole[cut..(cut + 40).min(whole.len())].fill(0);
        tails.push(hole);
    }
    tails
}

#[test]
fn a_log_cut_at_any_byte_holds_what_was_whole_before_the_cut() {
    let mut log = Log::new(1 << 20);
    for ids in [&[A, B][..], &[A], &[B, A], &[B]] {
        log.group(ids, &[50, 10]);
    }
    let path = log.path(1);
    let whole = fs::read(&path).unwrap();
    let end = usize::try_from(log.ends[3].1).unwrap();
    let whole = &whole[..end];
    let from = usize::try_from(log.ends[1].1).unwrap();
    let last_group = usize::try_from(log.ends[2].1).unwrap();
    for cut in from..end {
        for (kind, bytes) in tails(whole, cut, last_group).into_iter().enumerate() {
            if kind > 0 && cut % 4 != 0 {
                continue;
            }
            fs::write(&path, &bytes).unwrap();
            let (recovered, found, files) = log.recover();
            let [a, b] = txids(&recovered.state);
            let acked = log.ends.iter().filter(|(_, end)| *end <= cut as u64).count();
            let least = [[2, 1], [3, 2], [3, 3]][acked - 2];
            assert!(a >= least[0] && b >= least[1], "cut {cut} kind {kind}: {a} {b} of {least:?}");
            assert_eq!(log.check(&files, &found), 0, "cut {cut} kind {kind}");
            assert_eq!(found.segments.len() as u64, a + b, "cut {cut} kind {kind}: no hole");
            if cut % 16 == 0 {
                let (again, same, _) = log.recover();
                assert_eq!(
                    (again.state, same.segments),
                    (recovered.state, found.segments),
                    "one end for ever"
                );
            }
        }
    }
}

#[test]
fn a_flipped_bit_costs_the_segment_it_hits_and_no_other() {
    let mut log = Log::new(2_500);
    for _ in 0..3 {
        log.group(&[A, B], &[300]);
        log.group(&[B], &[40, 40]);
    }
    // The flips stay before the last group: of that one nobody can say whether it was acknowledged.
    while log.ends[log.ends.len() - 2].0 < log.ends[log.ends.len() - 1].0 || log.files.numbers().len() < 2 {
        log.group(&[B], &[40]);
    }
    let numbers = log.files.numbers();
    assert!(numbers.len() > 1);
    let last_group = log.ends[log.ends.len() - 2];
    let state = log.state.clone();
    let total = log.made.len();
    for number in numbers {
        let path = log.path(number);
        let whole = fs::read(&path).unwrap();
        let end = if number == last_group.0 { last_group.1 } else { whole.len() as u64 };
        for byte in (0..usize::try_from(end).unwrap()).step_by(3) {
            let mut bad = whole.clone();
            bad[byte] ^= 1 << (byte % 8);
            fs::write(&path, &bad).unwrap();
            let (recovered, found, files) = log.recover();
            let corrupt = log.check(&files, &found);
            assert!(found.segments.len() - corrupt >= total - 1, "file {number} byte {byte}");
            // The last segment of a database is the only word of its position, until the next file begins.
            let behind: u64 = (0..2).map(|n| txids(&state)[n] - txids(&recovered.state)[n]).sum();
            let last_of_a = number == last_group.0 && found.segments.len() == total - 1;
            assert!(behind == 0 || (behind == 1 && last_of_a), "file {number} byte {byte}");
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn a_payload_cannot_pass_for_records() {
    let mut log = Log::new(1 << 20);
    log.group(&[A], &[10]);
    // A hostile payload: a copy of this very file, records and all, under another file's salt.
    let path = log.path(1);
    let copy = fs::read(&path).unwrap()[..usize::try_from(log.ends[0].1).unwrap()].to_vec();
    let made = segment(log.position(A), 2, &[0], 7);
    let mut chunk = made.chunk(A, 0);
    let foreign: Vec<u8> = copy.chunks(8).flat_map(|c| c.iter().rev().copied().collect::<Vec<_>>()).collect();
    chunk.data = [foreign, copy].concat().into();
    let mut salted = chunk.data.to_vec();
    let salt = log.files.get(1).unwrap().unwrap().header.salt;
    // The salt is what the sender cannot know: without it nothing in the payload is found.
    for at in 0..salted.len() - 8 {
        if salted[at..at + 8] == salt.to_be_bytes() {
            salted[at] ^= 1;
        }
    }
    chunk.data = salted.into();
    let state = log.state.clone();
    log.writer.write(&[Item::Chunk(&chunk, Payload::of(&chunk.data))], true, || state).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let header = usize::try_from(log.ends[0].1).unwrap();
    bytes[header + 20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (recovered, found, _) = log.recover();
    assert_eq!(found.segments.len(), 1);
    assert_eq!(txids(&recovered.state), [1, 0]);
}

#[test]
fn a_checkpoint_shortens_the_reading_and_one_of_another_log_does_not() {
    let mut log = Log::new(2_000);
    for _ in 0..10 {
        log.group(&[A, B], &[500]);
    }
    let (recovered, all, _) = log.recover();
    let end = recovered.end.unwrap();
    let from = |checkpoint| {
        let files = Files::open(log.dir.path(), Probe::default()).unwrap();
        let mut found = Collected::default();
        let recovered = recover(&files, &Probe::default(), Some(checkpoint), &mut found).unwrap();
        assert_eq!(recovered.state, log.state);
        found
    };
    let short = from(end);
    assert!(short.segments.len() < all.segments.len() && all.segments.ends_with(&short.segments));
    assert_eq!(short.plan, Some(IndexPlan { rebuild: false, cursors_are_newer: true }));
    let middle = log.files.get(end.file - 1).unwrap().unwrap().header;
    let middle = from(Checkpoint { file: middle.number, salt: middle.salt, ..end });
    assert!(middle.segments.len() > short.segments.len());
    assert_eq!(middle.plan, Some(IndexPlan { rebuild: false, cursors_are_newer: false }));
    for foreign in [
        Checkpoint { log_id: 5, ..end },
        Checkpoint { salt: 5, ..end },
        Checkpoint { file: end.file + 1, ..end },
        Checkpoint { offset: end.offset + 8, ..end },
    ] {
        let found = from(foreign);
        assert_eq!(found.segments, all.segments);
        assert!(found.plan.unwrap().rebuild);
    }
}

#[test]
fn an_empty_folder_is_an_empty_log() {
    let dir = tempfile::tempdir().unwrap();
    let (recovered, found, _) = recover_in(&dir.path().join("log"));
    assert_eq!((recovered.last_number, recovered.end), (0, None));
    assert_eq!((recovered.state, found.segments.len()), (State::default(), 0));
}
