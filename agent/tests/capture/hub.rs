//! What the hub does, as far as capture can tell: it takes segments in order, checks them, and knows the image.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use walhub_agent::capture::{Capture, CaptureError, HubPages, Next, Options, SegmentMeta, Sink};
use walhub_common::ltx::Decoder;
use walhub_common::{Checksum, PageSize, Pgno, Pos, Txid};

/// A replica made of segments alone.
#[derive(Default, Clone)]
pub(crate) struct Replica {
    pub(crate) position: Option<Pos>,
    pub(crate) page_size: u32,
    pub(crate) image: Vec<u8>,
    /// Every segment taken.
    pub(crate) segments: Vec<(SegmentMeta, Vec<u8>)>,
    open: Option<(SegmentMeta, Vec<u8>)>,
    /// The chunk at which the sink fails once.
    pub(crate) fail_at: Option<usize>,
    /// Segments are applied and not kept.
    pub(crate) forget: bool,
}

impl Replica {
    /// One whose sink fails once, at this chunk.
    pub(crate) fn failing_at(chunk: usize) -> Replica {
        Replica { fail_at: Some(chunk), ..Replica::default() }
    }
}

impl Sink for Replica {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        self.open = Some((*meta, Vec::new()));
        Ok(())
    }

    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        if let Some(left) = &mut self.fail_at {
            if *left == 0 {
                self.fail_at = None;
                self.open = None;
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            *left -= 1;
        }
        assert!(!data.is_empty() && data.len() <= walhub_common::limits::MAX_CHUNK_BYTES);
        let (_, bytes) = self.open.as_mut().expect("chunk before begin");
        bytes.extend_from_slice(&data);
        if last {
            let (meta, bytes) = self.open.take().unwrap();
            self.apply(&meta, &bytes);
            if !self.forget {
                self.segments.push((meta, bytes));
            }
        }
        Ok(())
    }
}

impl Replica {
    /// Applies a segment that must follow, with every check the hub and a restore would make.
    pub(crate) fn apply(&mut self, meta: &SegmentMeta, bytes: &[u8]) {
        assert_eq!(meta.range.min(), Txid::following(self.position.map(|p| p.txid)), "{meta:?}");
        assert_eq!(meta.pre, self.position.map(|p| p.checksum), "{meta:?}");
        let mut decoder = Decoder::new(bytes).unwrap();
        let header = *decoder.header();
        assert_eq!(
            (header.range, header.commit, header.page_size),
            (meta.range, meta.commit, meta.page_size)
        );
        assert_eq!(header.provenance.unwrap().post, meta.post);
        let size = meta.page_size.bytes();
        let whole = self.page_size != meta.page_size.get();
        if whole {
            self.image.clear();
            self.page_size = meta.page_size.get();
        }
        let before = self.image.len() / size;
        let mut brought = 0;
        self.image.resize(meta.commit as usize * size, 0);
        let mut page = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            self.image[pgno.index() * size..][..size].copy_from_slice(&page);
            brought += usize::from(pgno.index() >= before);
        }
        decoder.finish().unwrap();
        let grown = meta.page_size.stored_pages(meta.commit) as usize;
        let had = meta.page_size.stored_pages(u32::try_from(before).unwrap()) as usize;
        assert_eq!(brought, grown.saturating_sub(had), "a growing database brings its new pages");
        self.position = Some(meta.position());
        // Summing the whole image each time would cost more than everything else.
        if self.image.len() < 256 << 10 || meta.range.max().get().is_multiple_of(100) {
            assert_eq!(checksum(&self.image, meta.page_size), meta.post, "{meta:?}");
        }
    }

    /// Takes what is committed, acks it, and maintains.
    pub(crate) fn drain(&mut self, capture: &mut Capture) -> usize {
        let mut taken = 0;
        while let Next::Sent(meta) = self.step(capture) {
            capture.acked(meta.range.max());
            taken += 1;
        }
        capture.maintain().unwrap();
        while let Next::Sent(meta) = self.step(capture) {
            capture.acked(meta.range.max());
            taken += 1;
        }
        assert_eq!(capture.position(), self.position);
        taken
    }

    pub(crate) fn step(&mut self, capture: &mut Capture) -> Next {
        let next = capture.next(self).unwrap();
        assert!(!matches!(next, Next::Lost(_)), "{next:?}");
        next
    }

    #[track_caller]
    pub(crate) fn assert_is_live(&self, path: &Path) {
        let live = crate::child::live_image(path);
        assert_eq!(self.image.len(), live.len(), "size of the image");
        let size = self.page_size as usize;
        let stated = self.position.unwrap().checksum;
        assert_eq!(
            checksum(&self.image, PageSize::new(self.page_size).unwrap()),
            stated,
            "database checksum"
        );
        let differ: Vec<_> = (0..live.len() / size)
            .filter(|i| live[i * size..][..size] != self.image[i * size..][..size])
            .map(|i| i + 1)
            .collect();
        assert!(differ.is_empty(), "pages differ: {differ:?}");
    }

    /// Rolls a capture forward to this replica, with what the hub would answer.
    pub(crate) fn roll(&self, capture: &mut Capture) -> Result<(), CaptureError> {
        let after = capture.position().map(|p| p.txid);
        let newer = self.segments.iter().filter(|(meta, _)| Some(meta.range.max()) > after);
        self.roll_with(capture, newer.map(|(_, bytes)| &bytes[..]))
    }

    /// As [`Replica::roll`]; `newer` are the segments after the capture's position.
    pub(crate) fn roll_with<'a>(
        &self,
        capture: &mut Capture,
        newer: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), CaptureError> {
        let after = capture.position().map(|p| p.txid);
        let changed: BTreeSet<u32> = newer.flat_map(pages).map(Pgno::get).collect();
        let page_size = PageSize::new(self.page_size).unwrap();
        let mut table = changes(&self.image, page_size);
        table.retain(|(pgno, _)| after.is_none() || changed.contains(&pgno.get()));
        let batches: Vec<_> = table.chunks(7).map(|batch| Ok(batch.to_vec())).collect();
        capture.roll_forward(HubPages {
            position: self.position.unwrap(),
            page_size,
            commit: u32::try_from(self.image.len() / page_size.bytes()).unwrap(),
            after,
            batches: &mut batches.into_iter(),
        })
    }
}

/// Numbers of the pages in an LTX file.
pub(crate) fn pages(ltx: &[u8]) -> Vec<Pgno> {
    let mut decoder = Decoder::new(ltx).unwrap();
    let mut page = Vec::new();
    std::iter::from_fn(|| decoder.next_page(&mut page).unwrap()).collect()
}

/// Checksums of all pages of an image.
fn changes(image: &[u8], page_size: PageSize) -> Vec<(Pgno, Checksum)> {
    let pages = (1..).filter_map(Pgno::new).zip(image.chunks(page_size.bytes()));
    pages
        .filter(|(pgno, _)| *pgno != page_size.lock_page())
        .map(|(pgno, page)| (pgno, Checksum::of_page(pgno, page)))
        .collect()
}

/// Database checksum of an image.
pub(crate) fn checksum(image: &[u8], page_size: PageSize) -> Checksum {
    changes(image, page_size).into_iter().fold(Checksum::EMPTY, |sum, (_, page)| sum.toggle(page))
}

/// A sink for what nobody needs.
pub(crate) struct Discard;

impl Sink for Discard {
    fn begin(&mut self, _: &SegmentMeta) -> io::Result<()> {
        Ok(())
    }
    fn chunk(&mut self, _: Bytes, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A scratch folder with a database and a state folder.
pub(crate) struct Place {
    folder: std::path::PathBuf,
    _own: Option<tempfile::TempDir>,
    pub(crate) frames: u32,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place::with_frames(1000)
    }

    /// Checkpoints after this many frames.
    pub(crate) fn with_frames(frames: u32) -> Place {
        let own = tempfile::tempdir().unwrap();
        Place { folder: own.path().to_owned(), _own: Some(own), frames }
    }

    /// Somebody else's, in another process.
    pub(crate) fn at(folder: &Path, frames: u32) -> Place {
        Place { folder: folder.to_owned(), _own: None, frames }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn db(&self) -> std::path::PathBuf {
        self.folder.join("app.db")
    }

    pub(crate) fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.folder.join("app.db-wal")).map_or(0, |m| m.len())
    }

    pub(crate) fn state(&self) -> std::path::PathBuf {
        self.folder.join("state")
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            path: self.db(),
            state_dir: self.state(),
            checkpoint_frames: self.frames,
            compression: walhub_common::ltx::Compression::FAST,
            wal_limit_bytes: 256 << 20,
        }
    }

    pub(crate) fn attach(&self) -> Capture {
        Capture::attach(self.options()).unwrap()
    }

    /// Attaches for the first time and takes a snapshot.
    pub(crate) fn follow(&self) -> (Capture, Replica) {
        let mut capture = self.attach();
        let mut replica = Replica::default();
        let meta = capture.snapshot(&mut replica).unwrap();
        capture.acked(meta.range.max());
        (capture, replica)
    }
}
