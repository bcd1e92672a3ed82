//! Log files on disk: their names, their headers, and the set of those that exist.

use super::probe::{Probe, Step};
use super::record::{MAX_HEAD_BYTES, Malformed, PREFIX_BYTES, crc, salt_of};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a file header.
pub(in crate::buffer) const FILE_HEADER_BYTES: u64 = 64;

const MAGIC: [u8; 8] = *b"walhubL1";
const CACHED_FILES: usize = 16;

/// The first bytes of a log file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct FileHeader {
    /// Which log this file belongs to.
    pub(in crate::buffer) log_id: u64,
    /// Place in the log; files have rising numbers.
    pub(in crate::buffer) number: u64,
    /// Mark of this file's records.
    pub(in crate::buffer) salt: u64,
    /// When it was begun, Unix ms; for people.
    pub(in crate::buffer) created_ms: i64,
}

impl FileHeader {
    /// Its bytes.
    pub(in crate::buffer) fn encode(&self) -> [u8; FILE_HEADER_BYTES as usize] {
        let mut out = [0; FILE_HEADER_BYTES as usize];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.log_id.to_be_bytes());
        out[16..24].copy_from_slice(&self.number.to_be_bytes());
        out[24..32].copy_from_slice(&self.salt.to_be_bytes());
        out[32..40].copy_from_slice(&self.created_ms.to_be_bytes());
        let sum = crc(&out[..56]);
        out[56..64].copy_from_slice(&sum.to_be_bytes());
        out
    }

    /// Reads it back.
    pub(in crate::buffer) fn decode(
        bytes: &[u8; FILE_HEADER_BYTES as usize],
    ) -> Result<FileHeader, Malformed> {
        let number = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(raw)
        };
        if bytes[0..8] != MAGIC {
            return Err(Malformed("this is no log file of this version"));
        }
        if crc(&bytes[..56]) != number(56) {
            return Err(Malformed("the file header does not match its checksum"));
        }
        Ok(FileHeader {
            log_id: number(8),
            number: number(16),
            salt: number(24),
            created_ms: number(32).cast_signed(),
        })
    }
}

/// A log file open for reading; it stays readable after it was unlinked.
#[derive(Debug)]
pub(in crate::buffer) struct LogFile {
    /// Its header.
    pub(in crate::buffer) header: FileHeader,
    /// The file.
    pub(in crate::buffer) file: File,
    /// Where it lies.
    pub(in crate::buffer) path: PathBuf,
}

impl LogFile {
    fn open(path: PathBuf, number: u64) -> io::Result<LogFile> {
        let file = File::open(&path)?;
        let mut bytes = [0; FILE_HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let header = match FileHeader::decode(&bytes) {
            Ok(header) => header,
            // The records name the salt too: a damaged header does not take them with it.
            Err(e) => match first_salt(&file)? {
                Some(salt) => FileHeader { log_id: 0, number, salt, created_ms: 0 },
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            },
        };
        Ok(LogFile { header, file, path })
    }
}

/// The file is there, and its start says nothing.
pub(in crate::buffer) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn first_salt(file: &File) -> io::Result<Option<u64>> {
    let mut bytes = [0; PREFIX_BYTES + MAX_HEAD_BYTES];
    let got = file.read_at(&mut bytes, FILE_HEADER_BYTES)?;
    Ok(salt_of(&bytes[..got]))
}

/// The files that exist.
#[derive(Debug)]
pub(in crate::buffer) struct Files {
    folder: PathBuf,
    probe: Probe,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: BTreeMap<u64, u64>,
    total: u64,
    cache: VecDeque<Arc<LogFile>>,
}

impl Files {
    /// Finds the files in `folder`, which is made when it is missing. Leftovers of unfinished creations are removed.
    pub(in crate::buffer) fn open(folder: &Path, probe: Probe) -> io::Result<Files> {
        fs::create_dir_all(folder)?;
        let mut state = State::default();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(number) = parse_name(name) {
                let bytes = entry.metadata()?.len();
                state.bytes.insert(number, bytes);
                state.total += bytes;
            } else if name.ends_with(".tmp") {
                fs::remove_file(entry.path())?;
            }
        }
        let files = Files { folder: folder.to_owned(), probe, state: Mutex::new(state) };
        files.sync_folder()?;
        Ok(files)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their numbers, oldest first.
    pub(in crate::buffer) fn numbers(&self) -> Vec<u64> {
        self.lock().bytes.keys().copied().collect()
    }

    /// The oldest one.
    pub(in crate::buffer) fn oldest(&self) -> Option<u64> {
        self.lock().bytes.first_key_value().map(|(number, _)| *number)
    }

    /// Bytes they hold.
    pub(in crate::buffer) fn total_bytes(&self) -> u64 {
        self.lock().total
    }

    /// Says how many bytes a file holds now; a new file becomes known by this.
    pub(in crate::buffer) fn set_bytes(&self, number: u64, bytes: u64) {
        let mut state = self.lock();
        let before = state.bytes.insert(number, bytes).unwrap_or(0);
        state.total = state.total - before + bytes;
    }

    /// True when a file exists.
    pub(in crate::buffer) fn holds(&self, number: u64) -> bool {
        self.lock().bytes.contains_key(&number)
    }

    /// The files up to `end`, not including it, with their bytes, oldest first.
    pub(in crate::buffer) fn before(&self, end: u64) -> Vec<(u64, u64)> {
        self.lock().bytes.range(..end).map(|(number, bytes)| (*number, *bytes)).collect()
    }

    /// Where a file lies.
    pub(in crate::buffer) fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016x}.log"))
    }

    /// A file for reading; `None` when it is gone.
    pub(in crate::buffer) fn get(&self, number: u64) -> io::Result<Option<Arc<LogFile>>> {
        let mut state = self.lock();
        if let Some(at) = state.cache.iter().position(|f| f.header.number == number) {
            let found = Arc::clone(&state.cache[at]);
            return Ok(Some(found));
        }
        if !state.bytes.contains_key(&number) {
            return Ok(None);
        }
        let opened = match LogFile::open(self.path(number), number) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => Arc::new(opened?),
        };
        if opened.header.number != number {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file has another file's name"));
        }
        if state.cache.len() == CACHED_FILES {
            state.cache.pop_front();
        }
        state.cache.push_back(Arc::clone(&opened));
        Ok(Some(opened))
    }

    /// Makes a file with these first bytes, `length` bytes long (holes), complete on disk under its name when it
    /// returns. After an error nothing of it is left.
    pub(in crate::buffer) fn create(
        &self,
        header: &FileHeader,
        start: &[u8],
        length: u64,
    ) -> io::Result<File> {
        let path = self.path(header.number);
        let temporary = path.with_extension("tmp");
        let made = self.create_at(&temporary, &path, header, start, length);
        if made.is_err() {
            // What cannot be removed now is removed when the folder is opened next.
            let _ = fs::remove_file(&temporary);
            let _ = fs::remove_file(&path);
        }
        made
    }

    fn create_at(
        &self,
        temporary: &Path,
        path: &Path,
        header: &FileHeader,
        start: &[u8],
        length: u64,
    ) -> io::Result<File> {
        self.probe.at(Step::Create(temporary))?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(temporary)?;
        file.write_all_at(&header.encode(), 0)?;
        file.write_all_at(start, FILE_HEADER_BYTES)?;
        let end = FILE_HEADER_BYTES + start.len() as u64;
        file.set_len(length.max(end))?;
        file.sync_all()?;
        self.probe.at(Step::Rename(path))?;
        fs::rename(temporary, path)?;
        self.sync_folder()?;
        self.probe.at(Step::Synced { path, end })?;
        self.set_bytes(header.number, end);
        Ok(file)
    }

    /// Cuts a file to `end`, on disk when it returns.
    pub(in crate::buffer) fn truncate(&self, number: u64, file: &File, end: u64) -> io::Result<()> {
        let path = self.path(number);
        self.probe.at(Step::Truncate { path: &path, end })?;
        file.set_len(end)?;
        file.sync_all()?;
        self.set_bytes(number, end);
        self.probe.at(Step::Synced { path: &path, end })
    }

    /// Unlinks a file; readers that have it open keep it.
    pub(in crate::buffer) fn unlink(&self, number: u64) -> io::Result<()> {
        let path = self.path(number);
        self.probe.at(Step::Unlink(&path))?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut state = self.lock();
        if let Some(bytes) = state.bytes.remove(&number) {
            state.total -= bytes;
        }
        state.cache.retain(|f| f.header.number != number);
        drop(state);
        self.sync_folder()
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.probe.at(Step::SyncFolder)?;
        File::open(&self.folder)?.sync_all()
    }
}

fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    if digits.len() != 16 || digits.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FileHeader = FileHeader { log_id: 5, number: 3, salt: 9, created_ms: -1 };

    #[test]
    fn headers_round_trip_and_every_flipped_bit_is_noticed() {
        let bytes = HEADER.encode();
        assert_eq!(FileHeader::decode(&bytes), Ok(HEADER));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FileHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn only_our_names_are_files() {
        assert_eq!(parse_name("00000000000000ff.log"), Some(255));
        for other in ["ff.log", "00000000000000FF.log", "00000000000000ff.tmp", "+0000000000000ff.log", "x"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn an_unlinked_file_stays_readable_and_is_no_longer_counted() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path(), Probe::default()).unwrap();
        files.create(&HEADER, b"snapshot", 4096).unwrap();
        assert_eq!((files.oldest(), files.total_bytes()), (Some(3), 72));
        let open = files.get(3).unwrap().unwrap();
        files.unlink(3).unwrap();
        assert_eq!((files.oldest(), files.total_bytes()), (None, 0));
        assert!(files.get(3).unwrap().is_none());
        let mut bytes = [0; 8];
        open.file.read_exact_at(&mut bytes, 64).unwrap();
        assert_eq!(&bytes, b"snapshot");
    }

    #[test]
    fn a_failed_creation_leaves_nothing() {
        for failing in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let probe = Probe::new(move |step| {
                let number = match step {
                    Step::Create(_) => 0,
                    Step::Rename(_) => 1,
                    Step::Synced { .. } => 2,
                    _ => 3,
                };
                if number == failing { Err(io::Error::other("full")) } else { Ok(()) }
            });
            let files = Files::open(dir.path(), probe).unwrap();
            assert!(files.create(&HEADER, b"", 0).is_err());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "step {failing}");
            assert!(files.numbers().is_empty());
        }
    }
}
