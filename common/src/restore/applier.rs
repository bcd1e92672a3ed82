//! Takes LTX files oldest first and turns them into the database they describe.

use super::output::Output;
use super::writer::{Batch, Mark, Writer};
use super::{Progress, Proof, Report, RestoreError};
use crate::ltx::{Decoder, Header};
use crate::{Checksum, Pgno, TxidRange};
use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// Bytes read from an input at once.
const READ_BYTES: usize = 256 * 1024;

type OnProgress = Box<dyn FnMut(Progress) + Send>;

/// A restore under way. After an error it is useless; dropping it at any moment leaves the output as it was.
pub struct Applier {
    writer: Writer,
    output: Output,
    batch: Batch,
    page: Vec<u8>,
    run: Option<Run>,
    pages: u32,
    progress: Progress,
    on_progress: OnProgress,
    failed: bool,
}

/// The files applied so far.
#[derive(Clone, Copy)]
struct Run {
    range: TxidRange,
    newest: Header,
}

impl Applier {
    /// Prepares a restore into `path`, making its folder when there is none. Refuses an existing file unless
    /// `overwrite`, and in any case one that has a `-wal`, `-shm` or `-journal` beside it.
    pub fn new(path: impl AsRef<Path>, overwrite: bool) -> Result<Applier, RestoreError> {
        let output = Output::create(path.as_ref(), overwrite.into())?;
        let writer = Writer::start(output.handle()?, output.temp().to_owned())
            .map_err(RestoreError::io("start a thread for", output.temp()))?;
        Ok(Applier {
            writer,
            output,
            batch: Batch::default(),
            page: Vec::new(),
            run: None,
            pages: 0,
            progress: Progress::default(),
            on_progress: Box::new(|_| {}),
            failed: false,
        })
    }

    /// Reports progress to `callback`, on the thread that calls [`Applier::apply`].
    #[must_use]
    pub fn on_progress(mut self, callback: impl FnMut(Progress) + Send + 'static) -> Applier {
        self.on_progress = Box::new(callback);
        self
    }

    /// Applies the next file; `name` is what errors call it. The first file must hold every page of its database;
    /// each further one must continue (or overlap and extend) those before it. The file is verified to its last byte.
    ///
    /// A checksum that does not fit may be reported by a later call, at the latest by [`Applier::finish`].
    pub fn apply(&mut self, name: &str, input: impl Read) -> Result<Header, RestoreError> {
        if self.failed {
            return Err(RestoreError::Abandoned);
        }
        let result = self.apply_file(name, input);
        self.failed = result.is_err();
        result
    }

    fn apply_file(&mut self, name: &str, input: impl Read) -> Result<Header, RestoreError> {
        let fault = |source| RestoreError::Input { name: name.to_owned(), source };
        let bytes_in = Cell::new(self.progress.bytes_in);
        let input = Counted { input, bytes: &bytes_in };
        let mut file = Decoder::new(BufReader::with_capacity(READ_BYTES, input)).map_err(fault)?;
        let header = *file.header();
        self.check_continues(name, &header)?;
        if self.run.is_some_and(|run| run.newest.page_size != header.page_size) {
            // The application gave its database another page size: the file must bring every page.
            self.writer.start_over()?;
            self.pages = 0;
        }
        let lock = header.page_size.lock_page();
        while let Some(pgno) = file.next_page(&mut self.page).map_err(fault)? {
            if pgno.get() > header.commit {
                continue;
            }
            if pgno.get() > self.pages {
                self.check_next(name, lock, pgno.get())?;
                self.pages = pgno.get();
            }
            self.batch.push(pgno, &self.page);
            if self.batch.is_full() {
                self.flush(&header)?;
                self.progress.bytes_in = bytes_in.get();
                (self.on_progress)(self.progress);
            }
        }
        let trailer = file.finish().map_err(fault)?;
        self.progress.bytes_in = bytes_in.get();
        if self.next_page(lock) <= header.commit {
            return Err(RestoreError::MissingPage { name: name.to_owned(), pgno: self.next_page(lock) });
        }
        self.pages = header.commit;
        self.flush(&header)?;
        let adjacent = self.run.is_some_and(|run| header.range.follows(Some(run.range.max())));
        self.writer.mark(Mark {
            name: name.to_owned(),
            txid: header.range.max(),
            commit: header.commit,
            pre: header.provenance.and_then(|p| p.pre).filter(|_| adjacent),
            post: header.provenance.map(|p| p.post).or(trailer.post_apply),
        })?;
        let min = self.run.map_or(header.range, |run| run.range).min();
        let range = TxidRange::new(min, header.range.max()).expect("BUG: files were checked to advance");
        self.run = Some(Run { range, newest: header });
        self.progress.files += 1;
        (self.on_progress)(self.progress);
        Ok(header)
    }

    /// Verifies the image, makes it durable and gives it its name. `expected` is the database checksum that the caller
    /// knows for this position; a different one is an error and leaves no file.
    pub fn finish(mut self, expected: Option<Checksum>) -> Result<Report, RestoreError> {
        if self.failed {
            return Err(RestoreError::Abandoned);
        }
        let image = self.writer.finish()?;
        let run = self.run.filter(|run| run.newest.commit > 0).ok_or(RestoreError::Empty)?;
        let range = run.range;
        if let Some(expected) = expected
            && expected != image.checksum
        {
            let place = format!("at transaction {}", range.max());
            return Err(RestoreError::Mismatch { place, expected, found: image.checksum });
        }
        let page_size = run.newest.page_size;
        let bytes = u64::from(self.pages) * u64::from(page_size.get());
        self.output.publish(bytes)?;
        let proof = if image.proven || expected.is_some() { Proof::Source } else { Proof::FilesOnly };
        Ok(Report {
            path: self.output.path().to_owned(),
            page_size,
            pages: self.pages,
            bytes,
            range,
            timestamp_ms: run.newest.timestamp_ms,
            checksum: image.checksum,
            proof,
            progress: self.progress,
        })
    }

    fn check_continues(&self, name: &str, header: &Header) -> Result<(), RestoreError> {
        let Some(run) = self.run else { return Ok(()) };
        let (last, range) = (run.range.max(), header.range);
        if range.max() <= last || range.min() > last.next() {
            return Err(RestoreError::Gap {
                name: name.to_owned(),
                min: range.min(),
                max: range.max(),
                last,
            });
        }
        Ok(())
    }

    /// A database grows page by page: this finds incomplete files, and a hostile page number cannot make the table of
    /// page checksums grow by more than what was received.
    fn check_next(&self, name: &str, lock: Pgno, pgno: u32) -> Result<(), RestoreError> {
        let due = self.next_page(lock);
        if pgno != due {
            return Err(RestoreError::MissingPage { name: name.to_owned(), pgno: due });
        }
        Ok(())
    }

    fn next_page(&self, lock: Pgno) -> u32 {
        let next = self.pages.saturating_add(1);
        if next == lock.get() { next + 1 } else { next }
    }

    fn flush(&mut self, header: &Header) -> Result<(), RestoreError> {
        self.progress.pages_written += self.batch.len();
        if self.batch.len() > 0 {
            self.writer.pages(header.page_size, &mut self.batch)?;
        }
        Ok(())
    }
}

struct Counted<'a, R> {
    input: R,
    bytes: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buf)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}
