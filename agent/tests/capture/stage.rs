//! STAGE: a first snapshot in parts, beside writers, over breaks, with a log that must stay short.

use crate::child::App;
use crate::hub::{Place, Replica, checksum};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use walhub_agent::capture::{
    Capture, CaptureError, Options, Pace, Parts, SegmentMeta, Sink, Staged, Standing, Walk,
};
use walhub_common::limits::MAX_PART_BYTES;
use walhub_common::ltx::Decoder;
use walhub_common::{Checksum, PageSize, Pgno};

/// What a hub keeps.
#[derive(Default)]
struct Hub {
    pages: BTreeMap<u32, Vec<u8>>,
    page_size: u32,
    next_part: u64,
    /// Page bytes that came in parts.
    received: usize,
    last: bool,
    file: Option<(SegmentMeta, Vec<u8>)>,
    /// The chunk at which the link breaks.
    fail_at: Option<usize>,
    complete: Option<Replica>,
}

impl Parts for Hub {
    fn part(&mut self) -> &mut dyn Sink {
        self.last = false;
        self
    }
    fn last(&mut self) -> &mut dyn Sink {
        self.last = true;
        self
    }
}

impl Sink for Hub {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        self.file = Some((*meta, Vec::new()));
        Ok(())
    }

    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        if let Some(left) = &mut self.fail_at {
            if *left == 0 {
                (self.fail_at, self.file) = (None, None);
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            *left -= 1;
        }
        let (_, bytes) = self.file.as_mut().unwrap();
        bytes.extend_from_slice(&data);
        if last {
            let (meta, bytes) = self.file.take().unwrap();
            self.take(&meta, &bytes);
        }
        Ok(())
    }
}

impl Hub {
    fn take(&mut self, meta: &SegmentMeta, bytes: &[u8]) {
        let mut decoder = Decoder::new(bytes).unwrap();
        let header = *decoder.header();
        let number = header.range.min().get();
        assert_eq!(header.range.count(), 1);
        if number == 2 {
            self.pages.clear();
            (self.page_size, self.next_part) = (header.page_size.get(), 2);
        }
        assert_eq!((number, header.page_size.get()), (self.next_part, self.page_size));
        self.next_part += 1;
        let (mut page, mut size) = (Vec::new(), 0);
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            size += page.len();
            self.pages.insert(pgno.get(), page.clone());
        }
        decoder.finish().unwrap();
        assert!(size > 0 && size <= MAX_PART_BYTES);
        if !self.last {
            assert_eq!(meta.range, header.range);
            self.received += size;
            return;
        }
        assert_eq!(size as u32, self.page_size, "one page");
        let mut image = Vec::new();
        for pgno in 1..=meta.commit {
            image
                .extend_from_slice(self.pages.get(&pgno).unwrap_or_else(|| panic!("page {pgno} never came")));
        }
        assert_eq!(checksum(&image, meta.page_size), meta.post);
        let position = Some(meta.position());
        let mut replica = Replica::default();
        (replica.position, replica.page_size, replica.image) = (position, self.page_size, image);
        self.complete = Some(replica);
    }

    /// What an agent that knows nothing learns from it.
    fn staged(&self, place: &Place) -> Staged {
        let mut staged = Staged::create(&place.state()).unwrap();
        if let Some(page_size) = PageSize::new(self.page_size) {
            staged.resume(page_size, self.next_part);
            let sum = |(pgno, page): (&u32, &Vec<u8>)| {
                let pgno = Pgno::new(*pgno).unwrap();
                (pgno, Checksum::of_page(pgno, page))
            };
            let sums: Vec<_> = self.pages.iter().map(sum).collect();
            sums.chunks(100).for_each(|batch| staged.hold(batch).unwrap());
            staged.go_on().unwrap();
        }
        staged
    }
}

/// Does something after every run, as many times as it may.
struct Beside<F: FnMut()> {
    work: F,
    times: usize,
    seen: (u32, u32),
}

impl<F: FnMut()> Pace for Beside<F> {
    fn rest(&mut self, _: u64) -> io::Result<()> {
        if self.times > 0 {
            self.times -= 1;
            (self.work)();
        }
        Ok(())
    }
    fn progress(&mut self, staged: u32, all: u32) {
        assert!(staged <= all);
        self.seen = (staged, all);
    }
}

fn beside<F: FnMut()>(times: usize, work: F) -> Beside<F> {
    Beside { work, times, seen: (0, 0) }
}

fn attach(place: &Place, wal_limit_bytes: u64) -> Capture {
    Capture::attach(Options { wal_limit_bytes, ..place.options() }).unwrap()
}

/// A database of some megabytes.
fn filled(place: &Place, megabytes: u32) -> App {
    let mut app = App::create(&place.db(), "");
    app.sql(&format!(
        "CREATE TABLE big(id INTEGER PRIMARY KEY, x BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {})
         INSERT INTO big SELECT i, randomblob(1000) FROM n",
        megabytes * 1000
    ));
    app
}

#[test]
fn beside_a_writer_the_parts_are_one_state_and_the_log_goes_on_from_there() {
    let place = Place::new();
    let mut app = filled(&place, 20);
    let mut capture = attach(&place, 256 << 20);
    let bytes = capture.image_bytes().unwrap();
    let (mut hub, mut staged) = (Hub::default(), Staged::create(&place.state()).unwrap());
    let mut pace = beside(1000, || app.insert());
    let walk = capture.stage(&mut staged, &mut hub, &mut pace).unwrap();
    assert!(matches!(walk, Walk::Complete(meta) if meta.range.max().get() == 1));
    assert_eq!((u64::from(pace.seen.0) * 4096, pace.seen.0), (bytes, pace.seen.1));
    assert_eq!(hub.received as u64, bytes, "every page once");
    assert!(hub.next_part > 4, "more than one part");
    assert_eq!(capture.standing(), Standing::Aligned);
    let mut replica = hub.complete.unwrap();
    assert!(replica.drain(&mut capture) > 50, "what was committed meanwhile follows");
    replica.assert_is_live(&place.db());
}

#[test]
fn after_every_break_only_what_is_missing_or_changed_is_sent() {
    let place = Place::new();
    let mut app = filled(&place, 30);
    let mut hub = Hub::default();
    let mut breaks = 0;
    let mut inserted = 0;
    let (capture, bytes) = loop {
        // As after a restart of the agent: nothing is known but what the hub keeps.
        let mut capture = attach(&place, 256 << 20);
        let bytes = capture.image_bytes().unwrap();
        let mut staged = hub.staged(&place);
        hub.fail_at = (breaks < 12).then_some(11 + breaks % 5);
        let mut pace = beside(3, || {
            app.insert();
            inserted += 1;
        });
        match capture.stage(&mut staged, &mut hub, &mut pace) {
            Ok(Walk::Complete(_)) => break (capture, bytes),
            Ok(Walk::LogFull) => panic!("the log is short"),
            Err(CaptureError::Sink(_)) => breaks += 1,
            Err(e) => panic!("{e}"),
        }
        assert_ne!(capture.standing(), Standing::Aligned);
        capture.detach().unwrap();
    };
    assert!(breaks >= 3, "only {breaks} breaks");
    // Pages of the table that grows, of which each insert writes a handful; whole parts are never sent again.
    let most = bytes as usize + inserted * 16 * 4096;
    assert!(hub.received <= most, "{} of {bytes} bytes after {breaks} breaks", hub.received);
    let (mut capture, mut replica) = (capture, hub.complete.unwrap());
    app.insert();
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_log_that_grows_too_long_is_checkpointed_between_walks() {
    let place = Place::new();
    let mut app = filled(&place, 20);
    app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(place.wal_bytes(), 0);
    let limit = 400 << 10;
    let mut capture = attach(&place, limit);
    let (mut hub, mut staged) = (Hub::default(), Staged::create(&place.state()).unwrap());
    let mut walks = 0;
    let mut longest = 0;
    loop {
        let mut pace = beside(if walks < 6 { 1000 } else { 0 }, || {
            app.insert();
            app.sql("UPDATE big SET x = randomblob(1000) WHERE id % 500 = abs(random()) % 500");
        });
        match capture.stage(&mut staged, &mut hub, &mut pace).unwrap() {
            Walk::Complete(_) => break,
            Walk::LogFull => {}
        }
        walks += 1;
        longest = longest.max(place.wal_bytes());
        assert!(capture.shorten_log().unwrap());
    }
    assert!(walks >= 3, "{walks} walks");
    assert!(longest < limit * 4, "the log grew to {longest} bytes");
    let mut replica = hub.complete.unwrap();
    app.insert();
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_database_written_faster_than_it_can_be_read_gets_a_longer_log_and_an_end() {
    let place = Place::new();
    let mut app = filled(&place, 8);
    let mut capture = attach(&place, 64 << 10);
    let (mut hub, mut staged) = (Hub::default(), Staged::create(&place.state()).unwrap());
    let mut walks = 0;
    loop {
        let mut pace = beside(usize::MAX, || {
            app.sql("UPDATE big SET x = randomblob(1000) WHERE id % 300 = abs(random()) % 300");
        });
        if let Walk::Complete(_) = capture.stage(&mut staged, &mut hub, &mut pace).unwrap() {
            break;
        }
        walks += 1;
        assert!(walks < 400, "no end");
        capture.shorten_log().unwrap();
    }
    let mut replica = hub.complete.unwrap();
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn another_page_size_or_another_file_in_the_middle_is_noticed() {
    let place = Place::new();
    let mut app = filled(&place, 20);
    let mut hub = Hub { fail_at: Some(13), ..Hub::default() };
    let mut capture = attach(&place, 256 << 20);
    let mut staged = hub.staged(&place);
    capture.stage(&mut staged, &mut hub, &mut beside(0, || ())).unwrap_err();
    capture.detach().unwrap();
    assert!(hub.received > 0);
    app.sql("PRAGMA journal_mode=DELETE");
    app.sql("PRAGMA page_size=8192");
    app.sql("VACUUM");
    app.sql("PRAGMA journal_mode=WAL");
    app.sql("DELETE FROM big WHERE id > 15000");
    let mut capture = attach(&place, 256 << 20);
    let mut staged = hub.staged(&place);
    let walk = capture.stage(&mut staged, &mut hub, &mut beside(0, || ())).unwrap();
    assert!(matches!(walk, Walk::Complete(_)));
    assert_eq!(hub.page_size, 8192);
    let replica = hub.complete.take().unwrap();
    replica.assert_is_live(&place.db());

    let away = place.db().with_extension("away");
    std::fs::rename(place.db(), &away).unwrap();
    let walk = capture.stage(&mut staged, &mut hub, &mut beside(0, || ()));
    assert!(matches!(walk, Err(CaptureError::Moved)), "{walk:?}");
}

#[test]
fn a_history_that_the_hub_lost_goes_on_after_its_last_transaction() {
    let place = Place::new();
    let mut app = filled(&place, 12);
    let (mut capture, mut replica) = place.follow();
    app.insert();
    app.insert();
    replica.drain(&mut capture);
    assert_eq!(replica.position.unwrap().txid.get(), 3);
    let mut hub = Hub::default();
    let mut staged = hub.staged(&place);
    let walk = capture.stage(&mut staged, &mut hub, &mut beside(0, || ())).unwrap();
    assert!(
        matches!(walk, Walk::Complete(meta) if meta.range.min().get() == 1 && meta.range.max().get() == 4)
    );
    let mut replica = hub.complete.unwrap();
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}
