//! Counts phantoms: commit frames that verify, lie behind the published end of the log, and are later written over.
//!
//! Looks at the log and the wal-index as plain files, from a process that has no connection to the database: its
//! descriptors can drop nobody's locks.

use crate::tally::Tally;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use walhub_common::PageSize;
use walhub_common::wal::{FRAME_HEADER_BYTES, FrameHeader, FrameNo, Salts, WalPosition, WalReader};

const EVERY: Duration = Duration::from_millis(1);
/// Frames looked at behind the published end.
const FAR: usize = 64;
/// Commit frames remembered; the oldest are forgotten.
const REMEMBERED: usize = 256;

pub(crate) struct Observer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    pub(crate) fn start(database: &Path, tally: &Arc<Tally>) -> Observer {
        let stop = Arc::new(AtomicBool::new(false));
        let beside = |suffix| PathBuf::from(format!("{}{suffix}", database.display()));
        let (wal, shm, asked, tally) = (beside("-wal"), beside("-shm"), stop.clone(), tally.clone());
        let thread = std::thread::spawn(move || {
            let mut suspects: Vec<WalPosition> = Vec::new();
            while !asked.load(Ordering::Relaxed) {
                if let Some(found) = look(&wal, &shm, &mut suspects) {
                    tally.add(&tally.phantoms, found);
                }
                std::thread::sleep(EVERY);
            }
        });
        Observer { stop, thread: Some(thread) }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The published end, if the wal-index is whole.
struct Published {
    end: WalPosition,
    page_size: PageSize,
    big_endian: bool,
}

fn published(shm: &File) -> Option<Published> {
    let mut bytes = [0; 96];
    shm.read_exact_at(&mut bytes, 0).ok()?;
    if bytes[..48] != bytes[48..] || bytes[12] == 0 {
        return None;
    }
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let size = u32::from(u16::from_ne_bytes([bytes[14], bytes[15]]));
    Some(Published {
        end: WalPosition {
            salts: Salts([u32::from_be(word(32)), u32::from_be(word(36))]),
            frame: FrameNo(word(16)),
            checksum: [word(24), word(28)],
        },
        page_size: PageSize::new((size & 0xfe00) | ((size & 1) << 16))?,
        big_endian: bytes[13] != 0,
    })
}

/// Number of suspects that turned out to be phantoms.
fn look(wal: &Path, shm: &Path, suspects: &mut Vec<WalPosition>) -> Option<u64> {
    let (wal, shm) = (File::open(wal).ok()?, File::open(shm).ok()?);
    let now = published(&shm)?;
    // Whether a frame of a former generation was ever published cannot be told any more.
    suspects.retain(|suspect| suspect.salts == now.end.salts);
    let mut phantoms = 0;
    suspects.retain(|suspect| {
        if suspect.frame > now.end.frame {
            return true;
        }
        let mut header = [0; FRAME_HEADER_BYTES];
        if wal.read_exact_at(&mut header, suspect.frame.offset(now.page_size)).is_ok() {
            let frame = FrameHeader::parse(&header);
            phantoms += u64::from(frame.salts == suspect.salts && frame.checksum != suspect.checksum);
        }
        false
    });
    if now.end.frame > FrameNo::START {
        let mut reader = WalReader::resume(now.page_size, now.big_endian, now.end);
        let mut frame = vec![0; reader.frame_bytes()];
        for _ in 0..FAR {
            if wal.read_exact_at(&mut frame, reader.offset()).is_err() {
                break;
            }
            let Ok((_, read)) = reader.push(&frame) else { break };
            if read.commit.is_some() && !suspects.contains(&reader.position()) {
                suspects.push(reader.position());
            }
        }
    }
    let excess = suspects.len().saturating_sub(REMEMBERED);
    suspects.drain(..excess);
    // A restart of the log meanwhile makes everything seen above worthless.
    (published(&shm)?.end.salts == now.end.salts).then_some(phantoms)
}
