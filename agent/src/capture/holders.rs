//! Which processes hold a lock of the wal-index, or of the file itself: words for people, from `/proc/locks`. Where that says
//! nothing (another PID namespace, another system) nobody is named; nothing is decided by it.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of `-shm` that SQLite locks.
const CHECKPOINT_BYTE: u64 = 121;
/// The four read marks that keep the log from beginning anew.
const READ_BYTES: std::ops::RangeInclusive<u64> = 124..=127;
/// Named at most.
const MOST: usize = 3;

/// Processes, or nobody in particular.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holders(Vec<Holder>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Holder {
    pid: u32,
    name: String,
}

impl Holders {
    /// Who owns the checkpoint lock of a database.
    pub(super) fn of_checkpoint(db: &Path) -> Holders {
        Self::of(db, |write, first, last| write && first <= CHECKPOINT_BYTE && CHECKPOINT_BYTE <= last)
    }

    /// Who has read marks, this process aside.
    pub(super) fn of_marks(db: &Path) -> Holders {
        let mut holders =
            Self::of(db, |_, first, last| first <= *READ_BYTES.end() && *READ_BYTES.start() <= last);
        holders.0.retain(|holder| holder.pid != std::process::id());
        holders
    }

    /// Who has any lock of the file itself.
    pub(super) fn of_file(db: &Path) -> Holders {
        fs::metadata(db).map_or_else(|_| Holders::default(), |file| Self::on(file.ino(), |_, _, _| true))
    }

    /// True when a process of this name is among them.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|holder| holder.name == name)
    }

    fn of(db: &Path, wanted: impl Fn(bool, u64, u64) -> bool) -> Holders {
        // SQLite follows links, and its files lie beside the real one.
        let Ok(mut shm) = fs::canonicalize(db).map(std::path::PathBuf::into_os_string) else {
            return Holders::default();
        };
        shm.push("-shm");
        let Ok(inode) = fs::metadata(shm).map(|meta| meta.ino()) else { return Holders::default() };
        Self::on(inode, wanted)
    }

    fn on(inode: u64, wanted: impl Fn(bool, u64, u64) -> bool) -> Holders {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let mut pids: Vec<u32> = locks
            .lines()
            .filter_map(|line| parse(line, inode))
            .filter(|(_, write, first, last)| wanted(*write, *first, *last))
            .map(|(pid, ..)| pid)
            .collect();
        pids.sort_unstable();
        pids.dedup();
        Holders(pids.into_iter().map(named).collect())
    }
}

/// Process, whether it writes, first and last byte of a lock on a file.
fn parse(line: &str, inode: u64) -> Option<(u32, bool, u64, u64)> {
    // `7: POSIX  ADVISORY  WRITE 1234 fd:01:5678 121 121`; a waiter has `->` after the number and is not a holder.
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != "POSIX" {
        return None;
    }
    let write = words.nth(1)? == "WRITE";
    let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
    let file = words.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
    let first = words.next()?.parse().ok()?;
    let last = words.next()?;
    let last = if last == "EOF" { u64::MAX } else { last.parse().ok()? };
    (file == inode).then_some((pid, write, first, last))
}

fn named(pid: u32) -> Holder {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Holder { pid, name: name.trim().to_owned() }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("another process");
        }
        for (at, holder) in self.0.iter().take(MOST).enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            match (holder.pid == std::process::id(), holder.name.as_str()) {
                (true, _) => write!(f, "{separator}this agent itself, under another name")?,
                (false, "") => write!(f, "{separator}process {}", holder.pid)?,
                (false, name) => write!(f, "{separator}process {} ({name})", holder.pid)?,
            }
        }
        match self.0.len().saturating_sub(MOST) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        assert_eq!(
            parse("7: POSIX  ADVISORY  WRITE 1234 fd:01:5678 121 121", 5678),
            Some((1234, true, 121, 121))
        );
        let whole = parse("12: POSIX  ADVISORY  READ  1 08:02:9 0 EOF", 9);
        assert_eq!(whole, Some((1, false, 0, u64::MAX)));
        for other in [
            "7: POSIX  ADVISORY  WRITE 1234 fd:01:5679 121 121",
            "7: -> POSIX  ADVISORY  WRITE 1234 fd:01:5678 121 121",
            "7: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF",
            "7: OFDLCK ADVISORY  READ  -1 fd:01:5678 128 128",
            "7: POSIX  ADVISORY  WRITE -1 fd:01:5678 121 121",
            "",
        ] {
            assert_eq!(parse(other, 5678), None, "{other}");
        }
    }

    #[test]
    fn nobody_in_particular_is_said_as_such() {
        assert_eq!(Holders::default().to_string(), "another process");
        let holder = |pid, name: &str| Holder { pid, name: name.to_owned() };
        let many = Holders((1..6).map(|pid| holder(u32::MAX - pid, "x")).collect());
        assert!(many.to_string().ends_with("(x) and 2 more"), "{many}");
    }
}
