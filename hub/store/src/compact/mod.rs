//! Many LTX files ▸ one: compaction and snapshots, as far as they need no schedule.
//!
//! - [`compact`]: streaming merge into a local file, in memory that depends on neither the database's size nor the number
//!   of inputs. Blocking.
//! - [`windows`]: which run of files makes up the next window of a level. Pure.
//!
//! Invariants: LZ4 blocks are copied, never compressed again; a result from TXID 1 is given only when its pages give the
//! database checksum that the source took at its end; after an error nothing is left on disk.
//! Non-goals: choosing inputs, publishing.

pub mod windows;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use walhub_common::Checksum;
use walhub_common::ltx::{self, Decoder, Header, LtxError, Stamp};

/// Files merged at once: enough for what usually makes up a snapshot (the last one, a day of the highest level, an hour of those
/// below), so that hardly anything is written twice. Each costs two pages, an LZ4 block and a read buffer.
pub const FAN_IN: usize = 256;
/// Read buffers of all files together; a few get large ones, so that a disk is not asked for crumbs.
const READ_BYTES: usize = 32 << 20;
const READ_BUFFER: RangeInclusive<usize> = 64 << 10..=1 << 20;
const WRITE_BUFFER: usize = 1 << 20;

/// A file that is opened when its turn comes.
pub type Input = Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + Send>;

/// What was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Made {
    /// Its header.
    pub header: Header,
    /// Its length.
    pub bytes: u64,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// An input is damaged, or they do not form one run of one database.
    #[error(transparent)]
    Ltx(#[from] LtxError),
    /// The local file could not be written.
    #[error("writing {}: {source}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The pages do not give the checksum that the source took: an input is not what it should be.
    #[error("the pages give database checksum {computed}, the source took {expected}: nothing was published")]
    Image {
        /// Of the pages.
        computed: Checksum,
        /// From the newest input.
        expected: Checksum,
    },
    /// A whole database whose checksum nobody took cannot be proved.
    #[error("the newest file was not written by walhub: its database checksum is not known")]
    Unproved,
    /// The token was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Merges `inputs`, in TXID order, into the new file `out`; temporary files lie beside it. Ends soon after `cancel`.
pub fn compact(
    inputs: Vec<Input>,
    stamp: Stamp,
    out: &Path,
    cancel: &CancellationToken,
) -> Result<Made, CompactError> {
    let result = passes(inputs, stamp, out, cancel);
    if result.is_err() && cancel.is_cancelled() {
        return Err(CompactError::Cancelled);
    }
    result
}

fn passes(
    mut inputs: Vec<Input>,
    stamp: Stamp,
    out: &Path,
    cancel: &CancellationToken,
) -> Result<Made, CompactError> {
    let mut pass = 0;
    while inputs.len() > FAN_IN {
        // Only as many as must be are written twice, and of them the newest: what came before is larger as a rule.
        let spare = inputs.len() - FAN_IN;
        let groups = spare.div_ceil(FAN_IN - 1);
        let rest = inputs.split_off(inputs.len().saturating_sub(spare + groups));
        let (each, whole) = (rest.len().div_ceil(groups), stamp.whole && inputs.is_empty());
        let (mut rest, mut group) = (rest.into_iter().peekable(), 0);
        while rest.peek().is_some() {
            let stamp = Stamp { whole: whole && group == 0, ..stamp };
            let temp = Temp(out.with_extension(format!("{pass}-{group}")));
            merge(rest.by_ref().take(each).collect(), stamp, &temp.0, cancel)?;
            inputs.push(Box::new(move || {
                let file = File::open(&temp.0)?;
                // Its name goes now, its bytes with the reader.
                drop(temp);
                Ok(Box::new(file))
            }));
            group += 1;
        }
        pass += 1;
    }
    let temp = Temp(out.to_path_buf());
    let made = merge(inputs, stamp, out, cancel)?;
    std::mem::forget(temp);
    Ok(made)
}

/// One pass into `path`, which is removed by the caller on an error.
fn merge(
    inputs: Vec<Input>,
    stamp: Stamp,
    path: &Path,
    cancel: &CancellationToken,
) -> Result<Made, CompactError> {
    let write = |source| CompactError::Write { path: path.to_path_buf(), source };
    let read_buffer = (READ_BYTES / inputs.len().max(1)).clamp(*READ_BUFFER.start(), *READ_BUFFER.end());
    let mut decoders = Vec::with_capacity(inputs.len());
    for input in inputs {
        let input = Stoppable { input: input().map_err(LtxError::Io)?, cancel: cancel.clone() };
        decoders.push(Decoder::new(BufReader::with_capacity(read_buffer, input))?);
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(write)?;
    let mut writer = BufWriter::with_capacity(WRITE_BUFFER, file);
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let merged = ltx::merge_large(decoders, stamp, &mut writer, folder)?;
    if let Some(computed) = merged.image_checksum {
        let expected = merged.header.provenance.ok_or(CompactError::Unproved)?.post;
        if computed != expected {
            return Err(CompactError::Image { computed, expected });
        }
    }
    let file = writer.into_inner().map_err(|error| write(error.into_error()))?;
    let bytes = file.metadata().map_err(write)?.len();
    Ok(Made { header: merged.header, bytes })
}

/// A file that is removed with its value, if it is there.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Stoppable {
    input: Box<dyn Read + Send>,
    cancel: CancellationToken,
}

impl Read for Stoppable {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.input.read(buf)
    }
}

#[cfg(test)]
mod tests;
