//! The database as it was at one published header: the file, overlaid with the newest frame of each page.
//!
//! While the checkpoint lock is owned nobody can backfill, so the file does not change; and as long as frames are not
//! all backfilled the log cannot restart. An [`Image`] therefore stays readable for as long as nothing on the same capture
//! checkpoints, which its borrow of the handles ensures.
//!
//! Memory: 8 bytes per page that lies in the log beyond the backfilled frames, and one run of pages.

use super::error::{Broken, CaptureError};
use super::header::Header;
use super::vfs::Files;
use walhub_common::wal::{
    FRAME_HEADER_BYTES, FrameHeader, FrameNo, WAL_HEADER_BYTES, WalHeader, WalPosition, WalReader,
};
use walhub_common::{PageSize, Pgno};

/// Bytes read at once from file or log.
pub(super) const RUN_BYTES: usize = 256 * 1024;

/// Of a database whose header was never written.
const DEFAULT_PAGE_SIZE: PageSize = PageSize::new(4096).expect("BUG: 4096 is a page size");

/// A readable state of the database.
pub(super) struct Image<'a> {
    files: &'a Files,
    page_size: PageSize,
    commit: u32,
    /// Newest frame of each page in the log, ascending by page.
    overlay: Vec<(Pgno, FrameNo)>,
}

impl<'a> Image<'a> {
    /// The state that `header` publishes.
    pub(super) fn published(files: &'a Files, header: &Header) -> Result<Image<'a>, CaptureError> {
        let (page_size, commit) = Self::size(files, header)?;
        Self::at(files, header, header.last, header.checksum, page_size, commit)
    }

    /// Bytes per page and pages of the state that `header` publishes.
    pub(super) fn size(files: &Files, header: &Header) -> Result<(PageSize, u32), CaptureError> {
        let fallback = file_size(files)?;
        let page_size = header.page_size.unwrap_or(fallback.page_size);
        // A wal-index through which nothing was ever written does not know the size.
        let commit = if header.commit > 0 { header.commit } else { fallback.commit };
        Ok((page_size, commit))
    }

    /// The state after frame `end` of the published generation, whose running checksum is `checksum`.
    pub(super) fn at(
        files: &'a Files,
        header: &Header,
        end: FrameNo,
        checksum: [u32; 2],
        page_size: PageSize,
        commit: u32,
    ) -> Result<Image<'a>, CaptureError> {
        let overlay = if header.backfilled < end {
            let start = place(files, header, page_size, header.backfilled)?;
            read_overlay(files, header.big_endian, page_size, start, end, checksum)?
        } else {
            Vec::new()
        };
        Ok(Image { files, page_size, commit, overlay })
    }

    /// The file alone: the state of `commit` pages after which every frame was copied.
    pub(super) fn of_file(files: &'a Files, page_size: PageSize, commit: u32) -> Image<'a> {
        Image { files, page_size, commit, overlay: Vec::new() }
    }

    /// Bytes per page.
    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Pages of the database.
    pub(super) fn commit(&self) -> u32 {
        self.commit
    }

    /// Every page but the lock page, ascending.
    pub(super) fn all_pages(&self) -> impl Iterator<Item = Pgno> + use<> {
        let lock = self.page_size.lock_page();
        (1..=self.commit).filter_map(Pgno::new).filter(move |pgno| *pgno != lock)
    }

    /// Reads pages, given in ascending order; neighbours are read together.
    pub(super) fn read(
        &self,
        pages: impl Iterator<Item = Pgno>,
        mut each: impl FnMut(Pgno, &[u8]) -> Result<(), CaptureError>,
    ) -> Result<(), CaptureError> {
        let size = self.page_size.bytes();
        let most = (RUN_BYTES / size).max(1);
        let mut pages = pages.peekable();
        let mut buffer = Vec::new();
        while let Some(first) = pages.next() {
            let mut count = 1;
            while count < most && pages.next_if(|p| p.index() == first.index() + count).is_some() {
                count += 1;
            }
            buffer.resize(count * size, 0);
            self.read_run(first, &mut buffer)?;
            for (i, page) in buffer.chunks_exact(size).enumerate() {
                each(nth(first, i), page)?;
            }
        }
        Ok(())
    }

    fn read_run(&self, first: Pgno, out: &mut [u8]) -> Result<(), CaptureError> {
        let size = self.page_size.bytes();
        let count = out.len() / size;
        let from = self.overlay.partition_point(|(p, _)| *p < first);
        let overlaid: Vec<_> =
            self.overlay[from..].iter().take_while(|(p, _)| p.index() < first.index() + count).collect();
        if overlaid.len() < count {
            self.files.read_db(self.page_size.offset(first), out)?;
        }
        for (pgno, frame) in overlaid {
            let at = (pgno.index() - first.index()) * size;
            if !self.files.read_wal(frame.page_offset(self.page_size), &mut out[at..at + size])? {
                return Err(Broken::NoCommit(*frame).into());
            }
        }
        Ok(())
    }
}

fn nth(first: Pgno, i: usize) -> Pgno {
    let number = u32::try_from(first.index() + i + 1).expect("BUG: more pages than SQLite has");
    Pgno::new(number).expect("BUG: not zero")
}

/// The place after `frame` in the published generation, taken from the log itself.
pub(super) fn place(
    files: &Files,
    header: &Header,
    page_size: PageSize,
    frame: FrameNo,
) -> Result<WalPosition, CaptureError> {
    if frame == FrameNo::START {
        let log = log_header(files)?;
        if log.salts != header.salts || log.page_size != page_size {
            return Err(Broken::OtherGeneration.into());
        }
        return Ok(log.start());
    }
    let mut bytes = [0; FRAME_HEADER_BYTES];
    files.read_wal(frame.offset(page_size), &mut bytes)?;
    let fields = FrameHeader::parse(&bytes);
    if fields.salts != header.salts {
        return Err(Broken::OtherGeneration.into());
    }
    Ok(WalPosition { salts: fields.salts, frame, checksum: fields.checksum })
}

/// The header of the log file.
pub(super) fn log_header(files: &Files) -> Result<WalHeader, CaptureError> {
    let mut bytes = [0; WAL_HEADER_BYTES];
    files.read_wal(0, &mut bytes)?;
    WalHeader::parse(&bytes).map_err(|e| Broken::LogHeader(e).into())
}

/// Verifies the frames after `start` up to `end` and keeps the newest of each page.
fn read_overlay(
    files: &Files,
    big_endian: bool,
    page_size: PageSize,
    start: WalPosition,
    end: FrameNo,
    checksum: [u32; 2],
) -> Result<Vec<(Pgno, FrameNo)>, CaptureError> {
    let mut reader = WalReader::resume(page_size, big_endian, start);
    let frame_bytes = reader.frame_bytes();
    let most = (RUN_BYTES / frame_bytes).max(1);
    let mut overlay = Vec::new();
    let mut buffer = Vec::new();
    while reader.position().frame < end {
        let left = (end.get() - reader.position().frame.get()) as usize;
        buffer.resize(left.min(most) * frame_bytes, 0);
        if !files.read_wal(reader.offset(), &mut buffer)? {
            return Err(Broken::NoCommit(end).into());
        }
        for bytes in buffer.chunks_exact(frame_bytes) {
            let (number, frame) = reader.push(bytes)?;
            overlay.push((frame.pgno, number));
        }
    }
    if reader.position().checksum != checksum {
        return Err(Broken::Published(end).into());
    }
    overlay.sort_unstable_by(|(p, f), (q, g)| p.cmp(q).then(g.cmp(f)));
    overlay.dedup_by_key(|(pgno, _)| *pgno);
    overlay.shrink_to_fit();
    Ok(overlay)
}

/// Size of the database by its file alone.
struct FileSize {
    page_size: PageSize,
    commit: u32,
}

fn file_size(files: &Files) -> Result<FileSize, CaptureError> {
    let mut header = [0; 100];
    files.read_db(0, &mut header)?;
    let page_size = page_size_of(&header).unwrap_or(DEFAULT_PAGE_SIZE);
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let in_file = u32::try_from(files.db_bytes()?.div_ceil(page_size.get().into())).unwrap_or(u32::MAX);
    // SQLite's own rule: the count in the header is valid when the two change counters agree.
    let counted = word(28);
    let commit = if counted > 0 && word(24) == word(92) { counted } else { in_file };
    Ok(FileSize { page_size, commit })
}

/// The page size that a database header states.
pub(super) fn page_size_of(header: &[u8; 100]) -> Option<PageSize> {
    match u32::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => PageSize::new(65536),
        size => PageSize::new(size),
    }
}
