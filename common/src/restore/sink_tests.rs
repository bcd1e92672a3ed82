//! Databases made from pages in any order: equal to the source, or an error and nothing under the name.

use super::frames::{Frames, FramesBuilder};
use super::sink::{PageSink, Point};
use super::{Proof, RestoreError};
use crate::ltx::squeeze;
use crate::{Checksum, PageSize, Pgno, Txid};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::fs;
use std::path::{Path, PathBuf};

const SIZE: PageSize = PageSize::new(4096).unwrap();

struct Source {
    bytes: Vec<u8>,
    point: Point,
}

impl Source {
    fn new(pages: u32, seed: u64) -> Source {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; pages as usize * SIZE.bytes()];
        let mut sum = Checksum::EMPTY;
        for (pgno, page) in (1..).map_while(Pgno::new).zip(bytes.chunks_mut(SIZE.bytes())) {
            random.fill(&mut page[..1000]);
            sum = sum.toggle(Checksum::of_page(pgno, page));
        }
        let point = Point {
            txid: Txid::new(7).unwrap(),
            checksum: Some(sum),
            page_size: SIZE,
            commit: pages,
            timestamp_ms: 5,
        };
        Source { bytes, point }
    }

    fn page(&self, number: u32) -> &[u8] {
        &self.bytes[(number as usize - 1) * SIZE.bytes()..][..SIZE.bytes()]
    }

    fn frames(&self, pages: impl IntoIterator<Item = u32>) -> Frames {
        let mut builder = FramesBuilder::default();
        for number in pages {
            builder.push(Pgno::new(number).unwrap(), &squeeze(self.page(number)));
        }
        builder.take()
    }
}

fn fed(sink: &PageSink, all: impl IntoIterator<Item = Frames>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let sender = sink.sender();
    for frames in all {
        if runtime.block_on(sender.send(frames)).is_err() {
            return;
        }
    }
}

fn finish(sink: PageSink) -> Result<super::Report, RestoreError> {
    sink.finish(1, |_| Ok(()))
}

fn left(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn pages_in_any_order_become_the_database() {
    for seed in 0..4 {
        let source = Source::new(700, seed);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/app.db");
        let mut order: Vec<u32> = (1..=700).collect();
        let mut random = StdRng::seed_from_u64(seed);
        if seed > 0 {
            order.shuffle(&mut random);
        }
        let sink = PageSink::create(&out, false, source.point).unwrap();
        fed(
            &sink,
            order.chunks(random.random_range(1..300)).map(|pages| source.frames(pages.iter().copied())),
        );
        let report = finish(sink).unwrap();
        assert_eq!(
            (report.position().txid, Some(report.checksum)),
            (source.point.txid, source.point.checksum)
        );
        assert_eq!((report.proof, report.pages, report.progress.pages_written), (Proof::Source, 700, 700));
        assert!(fs::read(&out).unwrap() == source.bytes);
        assert_eq!(left(out.parent().unwrap()), [out]);
    }
}

#[test]
fn whatever_is_wrong_is_named_and_leaves_nothing() {
    let source = Source::new(10, 1);
    let all = || source.frames(1..=10);
    let mut other = source.point;
    other.checksum = Some(Checksum::EMPTY);
    let mut broken = all();
    broken.data = broken.data.slice(..broken.data.len() - 1);
    let cases: Vec<(&str, Point, Vec<Frames>)> = vec![
        ("page 4, which", source.point, vec![source.frames((1..=3).chain(5..=10))]),
        ("page 3 came twice", source.point, vec![all(), source.frames([3])]),
        (
            "page 11 came twice, or is none",
            source.point,
            vec![{
                let mut frames = all();
                frames.blocks[9].pgno = Pgno::new(11).unwrap();
                frames
            }],
        ),
        ("page 10 is damaged", source.point, vec![broken]),
        ("not what it was at the source at transaction 0000000000000007", other, vec![all()]),
        ("no pages", Point { commit: 0, ..source.point }, vec![]),
    ];
    for (text, point, frames) in cases {
        let folder = tempfile::tempdir().unwrap();
        let result = PageSink::create(&folder.path().join("app.db"), false, point).and_then(|sink| {
            fed(&sink, frames);
            finish(sink)
        });
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert!(left(folder.path()).is_empty(), "{text}: {:?}", left(folder.path()));
    }
}

#[test]
fn a_check_that_fails_keeps_the_name_free() {
    let source = Source::new(10, 1);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("app.db");
    let sink = PageSink::create(&out, false, source.point).unwrap();
    fed(&sink, [source.frames(1..=10)]);
    let result = sink.finish(1, |temp| {
        assert!(fs::read(temp).unwrap() == source.bytes);
        Err("it has no rows".to_owned())
    });
    assert!(result.unwrap_err().to_string().contains("but it has no rows"));
    assert!(left(folder.path()).is_empty());
}

/// 80 MB: enough to be kept.
#[test]
fn what_a_broken_restore_wrote_is_used_again_and_never_believed() {
    let source = Source::new(20_000, 3);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("app.db");
    let sink = PageSink::create(&out, false, source.point).unwrap();
    fed(
        &sink,
        (1..=18_000).collect::<Vec<u32>>().chunks(500).map(|pages| source.frames(pages.iter().copied())),
    );
    assert!(sink.break_off().unwrap());
    assert!(!out.exists() && left(folder.path()).len() == 2);
    // Somebody writes into what is there.
    let temp = folder.path().join("app.db.walhub-restore.tmp");
    let kept = fs::read(&temp).unwrap();
    let mut damaged = kept.clone();
    damaged[5_000_000] ^= 1;
    fs::write(&temp, damaged).unwrap();
    let rest = || source.frames(18_001..=20_000);
    let journal = folder.path().join("app.db.walhub-restore.journal");
    let note = fs::read(&journal).unwrap();
    let sink = PageSink::create(&out, false, source.point).unwrap();
    assert_eq!(sink.resumed(), 18_000);
    fed(&sink, [rest()]);
    assert!(matches!(finish(sink), Err(RestoreError::Mismatch { .. })));
    assert!(left(folder.path()).is_empty(), "the next try begins anew");
    // As it was left.
    fs::write(&temp, &kept).unwrap();
    fs::write(&journal, &note).unwrap();
    let sink = PageSink::create(&out, false, source.point).unwrap();
    assert_eq!(sink.present().gaps().collect::<Vec<_>>(), [18_001..=20_000]);
    fed(&sink, [rest()]);
    let report = finish(sink).unwrap();
    assert_eq!(report.progress.pages_written, 2_000);
    assert!(fs::read(&out).unwrap() == source.bytes);
    assert_eq!(left(folder.path()), std::slice::from_ref(&out));
    // Another point begins anew.
    fs::write(&temp, &kept).unwrap();
    fs::write(&journal, &note).unwrap();
    let sink = PageSink::create(&out, true, Point { txid: Txid::FIRST, ..source.point }).unwrap();
    assert_eq!(sink.resumed(), 0);
    drop(sink);
    assert_eq!(left(folder.path()), [out]);
}

#[test]
fn little_is_not_worth_keeping() {
    let source = Source::new(100, 3);
    let folder = tempfile::tempdir().unwrap();
    let sink = PageSink::create(&folder.path().join("app.db"), false, source.point).unwrap();
    fed(&sink, [source.frames(1..=90)]);
    assert!(!sink.break_off().unwrap());
    assert!(left(folder.path()).is_empty());
}
