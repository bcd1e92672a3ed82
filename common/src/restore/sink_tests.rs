//! Databases made from pages in any order: equal to the source, or an error and nothing under the name.

use super::frames::{Frames, FramesBuilder};
use super::sink::{PageSink, Point};
use super::{Proof, RestoreError, Unfilled, fill};
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
        Self::with(SIZE, pages, seed)
    }

    fn with(size: PageSize, pages: u32, seed: u64) -> Source {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; pages as usize * size.bytes()];
        let mut sum = Checksum::EMPTY;
        for (pgno, page) in (1..).map_while(Pgno::new).zip(bytes.chunks_mut(size.bytes())) {
            random.fill(&mut page[..size.bytes() / 4]);
            sum = sum.toggle(Checksum::of_page(pgno, page));
        }
        let point = Point {
            txid: Txid::new(7).unwrap(),
            checksum: Some(sum),
            page_size: size,
            commit: pages,
            timestamp_ms: 5,
        };
        Source { bytes, point }
    }

    fn page(&self, number: u32) -> &[u8] {
        let bytes = self.point.page_size.bytes();
        &self.bytes[(number as usize - 1) * bytes..][..bytes]
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

/// Runs that begin in the middle of a block of the disk, and a file that ends there.
#[test]
fn the_size_of_a_page_does_not_matter() {
    for (size, pages) in [(512, 9_001), (1024, 5_003), (65_536, 71)] {
        let source = Source::with(PageSize::new(size).unwrap(), pages, 1);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("app.db");
        let sink = PageSink::create(&out, false, source.point).unwrap();
        let single = source.frames((1..=pages).filter(|number| number % 1000 == 3));
        let (middle, last) = (pages / 2, pages - 1);
        let rest = [middle..=last, 1..=middle - 1, pages..=pages];
        let rest = rest.map(|run| source.frames(run.filter(|number| number % 1000 != 3)));
        fed(&sink, [single].into_iter().chain(rest));
        finish(sink).unwrap();
        assert!(fs::read(&out).unwrap() == source.bytes, "pages of {size} bytes");
    }
}

/// As a chain of files gives them: single pages from all over the database first, then the rest in long runs. There are more
/// single pages than may be held.
#[test]
fn single_pages_before_the_runs_that_lie_between_them() {
    for seed in 0..3 {
        let source = Source::new(20_000, seed);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("app.db");
        let mut random = StdRng::seed_from_u64(seed);
        let mut pages: Vec<u32> = (1..=20_000).collect();
        pages.shuffle(&mut random);
        let (single, rest) = pages.split_at_mut([300, 4_000, 12_000][seed as usize]);
        rest.sort_unstable();
        let small = single.chunks(50).map(|pages| {
            let mut pages = pages.to_vec();
            pages.sort_unstable();
            source.frames(pages)
        });
        let sink = PageSink::create(&out, false, source.point).unwrap();
        fed(&sink, small.chain(rest.chunks(1500).map(|pages| source.frames(pages.iter().copied()))));
        assert_eq!(finish(sink).unwrap().progress.pages_written, 20_000);
        assert!(fs::read(&out).unwrap() == source.bytes);
        assert_eq!(left(folder.path()), [out]);
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

/// What lies there when a restore is killed is what lies there while it runs.
#[test]
fn a_killed_restore_is_gone_on_with_from_its_last_sync() {
    let source = Source::new(45_000, 4);
    let folder = tempfile::tempdir().unwrap();
    let (out, next) = (folder.path().join("app.db"), folder.path().join("next.db"));
    let sink = PageSink::create(&out, false, source.point).unwrap();
    let pages: Vec<u32> = (1..=40_000).collect();
    fed(&sink, pages.chunks(500).map(|pages| source.frames(pages.iter().copied())));
    let (journal, temp) = (".walhub-restore.journal", ".walhub-restore.tmp");
    let beside = |path: &Path, end: &str| PathBuf::from(format!("{}{end}", path.display()));
    // 32 MiB are 8,192 pages: a sync is due.
    let began = std::time::Instant::now();
    while !beside(&out, journal).exists() && began.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for end in [journal, temp] {
        fs::copy(beside(&out, end), beside(&next, end)).unwrap();
    }
    drop(sink);
    let sink = PageSink::create(&next, false, source.point).unwrap();
    assert!((1..=40_000).contains(&sink.resumed()), "{}", sink.resumed());
    let had = sink.present();
    let rest: Vec<u32> = had.gaps().flatten().collect();
    fed(&sink, rest.chunks(500).map(|pages| source.frames(pages.iter().copied())));
    let report = finish(sink).unwrap();
    assert_eq!(report.progress.pages_written, rest.len() as u64);
    assert!(fs::read(&next).unwrap() == source.bytes);
    assert_eq!(left(folder.path()), [next]);
}

/// 176 MB are reserved, and 74 come.
#[test]
fn what_is_kept_takes_no_more_room_than_what_came() {
    use std::os::unix::fs::MetadataExt;
    let source = Source::new(43_000, 7);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("app.db");
    let pages: Vec<u32> = (5_000..14_000).chain(30_000..39_000).collect();
    let sink = PageSink::create(&out, false, source.point).unwrap();
    fed(&sink, pages.chunks(500).map(|pages| source.frames(pages.iter().copied())));
    assert!(sink.break_off().unwrap());
    let kept = fs::metadata(folder.path().join("app.db.walhub-restore.tmp")).unwrap();
    assert_eq!(kept.len(), source.point.bytes());
    assert!(kept.blocks() * 512 < 80 << 20, "{} bytes", kept.blocks() * 512);
    let sink = PageSink::create(&out, false, source.point).unwrap();
    assert_eq!(sink.resumed(), 18_000);
    let rest: Vec<u32> = sink.present().gaps().flatten().collect();
    fed(&sink, rest.chunks(500).map(|pages| source.frames(pages.iter().copied())));
    finish(sink).unwrap();
    assert!(fs::read(&out).unwrap() == source.bytes);
}

/// A journal whose file somebody removed says nothing of the file that takes its place, which is as long from the beginning.
#[test]
fn a_journal_without_its_file_is_forgotten_at_once() {
    let source = Source::new(20_000, 5);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("app.db");
    let sink = PageSink::create(&out, false, source.point).unwrap();
    let pages: Vec<u32> = (1..=18_000).collect();
    fed(&sink, pages.chunks(500).map(|pages| source.frames(pages.iter().copied())));
    assert!(sink.break_off().unwrap());
    let temp = folder.path().join("app.db.walhub-restore.tmp");
    fs::remove_file(&temp).unwrap();
    let sink = PageSink::create(&out, false, source.point).unwrap();
    // If it were killed now, the next one would find this.
    assert_eq!((sink.resumed(), left(folder.path())), (0, vec![temp]));
}

#[test]
fn what_begins_anew_takes_nothing_over_and_leaves_nothing() {
    let source = Source::new(20_000, 6);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("app.db");
    let pages: Vec<u32> = (1..=18_000).collect();
    let feed = |sink: &PageSink| {
        fed(sink, pages.chunks(500).map(|pages| source.frames(pages.iter().copied())));
    };
    let sink = PageSink::create_anew(&out, false, source.point).unwrap();
    feed(&sink);
    assert!(!sink.break_off().unwrap());
    assert!(left(folder.path()).is_empty());
    let sink = PageSink::create(&out, false, source.point).unwrap();
    feed(&sink);
    assert!(sink.break_off().unwrap());
    let sink = PageSink::create_anew(&out, false, source.point).unwrap();
    assert!(sink.resumed() == 0 && sink.present().is_empty());
    feed(&sink);
    fed(&sink, [source.frames(18_001..=20_000)]);
    finish(sink).unwrap();
    assert!(fs::read(&out).unwrap() == source.bytes);
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

/// Pages that come one batch after the other, until they break off.
struct Coming(Vec<Result<Frames, &'static str>>);

impl super::fill::Pages for Coming {
    type Error = &'static str;

    async fn next(&mut self) -> Result<Option<Frames>, &'static str> {
        match self.0.is_empty() {
            true => Ok(None),
            false => self.0.remove(0).map(Some),
        }
    }
}

#[tokio::test]
async fn a_sink_is_filled_or_says_why_not() {
    let source = Source::new(40, 3);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let sink = || PageSink::create(&path, false, source.point).unwrap();
    let all = || vec![Ok(source.frames(1..=20)), Ok(source.frames(21..=40))];

    let mut came = 0;
    let filled =
        fill(sink(), &mut Coming(all()), |bytes| came += bytes, std::future::pending::<&str>()).await;
    let report = finish(filled.unwrap()).unwrap();
    assert_eq!((report.checksum, report.progress.bytes_in), (source.point.checksum.unwrap(), came));
    assert_eq!(fs::read(&path).unwrap(), source.bytes);
    fs::remove_file(&path).unwrap();

    let broken = vec![Ok(source.frames(1..=20)), Err("the line is cut")];
    let broken = fill(sink(), &mut Coming(broken), |_| (), std::future::pending()).await;
    assert!(matches!(broken, Err(Unfilled::Broken { error: "the line is cut", kept: false })), "{broken:?}");
    let over = fill(sink(), &mut Coming(all()), |_| (), std::future::ready("interrupted")).await;
    assert!(matches!(over, Err(Unfilled::Broken { error: "interrupted", kept: false })), "{over:?}");
    assert_eq!(left(dir.path()), Vec::<PathBuf>::new());

    // A sink that fails ends the stream; its own reason is found at the end.
    let twice = vec![Ok(source.frames(1..=20)), Ok(source.frames(1..=20))];
    let filled = fill(sink(), &mut Coming(twice), |_| (), std::future::pending::<&str>()).await.unwrap();
    assert!(matches!(finish(filled), Err(RestoreError::Unexpected(_))));
    assert_eq!(left(dir.path()), Vec::<PathBuf>::new());
}
