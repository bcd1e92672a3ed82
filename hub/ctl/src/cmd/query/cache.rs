//! Copies of databases that earlier queries restored: one for each database of each hub, moved from point to point.
//!
//! Invariants
//! - A copy is moved by the process that holds its lock, and takes its name only when it is proven. Who has it open goes on
//!   reading the file that was there when it was opened.
//! - What lies in the folder is no more than the limit when a query begins to restore, the file to come included: copies that were
//!   not used for longest go first, those in use stay. (While a copy moves, it is there twice.)
//! - Only its owner may read the folder: databases lie in it.

use anyhow::{Context, anyhow, bail};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use walhub_common::folder_lock::FolderLock;
use walhub_common::{Checksum, DatabaseKey, PageSize, Pgno};

/// How often a copy that another process moves is tried again.
const RETRY: Duration = Duration::from_millis(50);
const COPY: &str = "copy.db";
const LOCK: &str = "lock";
/// Checksum of the copy; its age is when the copy was used.
const MARK: &str = "checksum";
/// Bytes of a copy that are read at once.
const READ_BYTES: usize = 1 << 20;

/// The folder.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    max_bytes: u64,
}

/// The place of one database's copy, for us alone until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    folder: PathBuf,
    _lock: FolderLock,
}

/// A copy as the sweep sees it.
struct Resident {
    folder: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// `$XDG_CACHE_HOME/walhub/query`, or the same under `~/.cache`.
pub(super) fn default_root() -> anyhow::Result<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let base = base.ok_or_else(|| anyhow!("there is no home folder for the cache: give --cache DIR"))?;
    Ok(base.join("walhub/query"))
}

impl Cache {
    /// The folder, made when it is missing.
    pub(super) fn open(root: PathBuf, max_bytes: u64) -> anyhow::Result<Cache> {
        private_folder(&root)?;
        Ok(Cache { root, max_bytes })
    }

    /// The place of a database of the hub at this address; waits while another process moves the copy. Cancel-safe.
    pub(super) async fn slot(&self, hub: &str, database: &DatabaseKey) -> anyhow::Result<Slot> {
        let keep = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        let hub: String = hub.chars().map(|c| if keep(c) { c } else { '_' }).collect();
        let folder =
            self.root.join(format!("hub-{hub}")).join(database.agent.as_str()).join(database.name.as_str());
        private_folder(&folder)?;
        loop {
            let taken = FolderLock::take(&folder.join(LOCK));
            if let Some(lock) = taken.with_context(|| format!("cannot lock {}", folder.display()))? {
                return Ok(Slot { folder, _lock: lock });
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Makes room for a copy of `bytes` in `slot`, at the expense of others. Blocks.
    pub(super) fn make_room(&self, slot: &Slot, bytes: u64) -> anyhow::Result<()> {
        if bytes > self.max_bytes {
            bail!(
                "the database has {}, more than the cache may hold ({}): give more with --cache-max",
                crate::output::bytes(bytes),
                crate::output::bytes(self.max_bytes)
            );
        }
        let mut others = self.residents()?;
        others.retain(|resident| resident.folder != slot.folder);
        others.sort_by_key(|resident| resident.used);
        let mut total: u64 = bytes + others.iter().map(|resident| resident.bytes).sum::<u64>();
        for resident in others {
            if total <= self.max_bytes {
                break;
            }
            // One that is being moved stays; one that is read may lose its name.
            if let Ok(Some(_lock)) = FolderLock::take(&resident.folder.join(LOCK)) {
                clear(&resident.folder)?;
                total -= resident.bytes;
            }
        }
        if total > self.max_bytes {
            bail!(
                "the cache is full of copies that other queries restore now: give it more with --cache-max"
            );
        }
        Ok(())
    }

    /// Copies, three folders deep: hub, agent, database.
    fn residents(&self) -> anyhow::Result<Vec<Resident>> {
        let mut folders = vec![self.root.clone()];
        for _ in 0..3 {
            let mut below = Vec::new();
            for folder in folders {
                below.extend(list(&folder)?.into_iter().filter(|path| path.is_dir()));
            }
            folders = below;
        }
        let resident = |folder: PathBuf| {
            let files = list(&folder)?;
            let sizes = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len());
            let used = fs::metadata(folder.join(MARK)).and_then(|mark| mark.modified());
            Ok(Resident { bytes: sizes.sum(), used: used.unwrap_or(SystemTime::UNIX_EPOCH), folder })
        };
        folders.into_iter().map(resident).collect()
    }
}

impl Slot {
    /// Where the copy lies, or will.
    pub(super) fn copy(&self) -> PathBuf {
        self.folder.join(COPY)
    }

    /// True when the copy is the database with this checksum: it was marked as such, and it is read to prove it. Blocks.
    pub(super) fn holds(&self, page_size: PageSize, pages: u32, checksum: Checksum) -> bool {
        let bytes = u64::from(pages) * u64::from(page_size.get());
        let marked =
            fs::read_to_string(self.folder.join(MARK)).is_ok_and(|mark| mark == checksum.to_string());
        let sized = || fs::metadata(self.copy()).is_ok_and(|copy| copy.len() == bytes);
        marked && sized() && sum(&self.copy(), page_size).is_ok_and(|found| found == checksum)
    }

    /// The copy is the database with this checksum, and used now.
    pub(super) fn mark(&self, checksum: &str) -> anyhow::Result<()> {
        fs::write(self.folder.join(MARK), checksum)
            .with_context(|| format!("cannot write into {}", self.folder.display()))
    }

    /// A copy to begin with: pages of an empty one all differ.
    pub(super) fn begin(&self) -> anyhow::Result<()> {
        let opened = fs::OpenOptions::new().append(true).create(true).open(self.copy());
        opened.map(drop).with_context(|| format!("cannot write {}", self.copy().display()))
    }

    /// There is no copy.
    pub(super) fn clear(&self) -> anyhow::Result<()> {
        clear(&self.folder)
    }
}

/// The database checksum of a file.
fn sum(path: &Path, page_size: PageSize) -> io::Result<Checksum> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(path)?;
    let (length, size) = (file.metadata()?.len(), page_size.bytes());
    let mut buffer = vec![0; READ_BYTES.max(size)];
    let (mut sum, mut at) = (Checksum::EMPTY, 0_u64);
    while at < length {
        let most = usize::try_from(length - at).unwrap_or(usize::MAX).min(buffer.len());
        let bytes = &mut buffer[..most - most % size];
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.read_exact_at(bytes, at)?;
        for page in bytes.chunks_exact(size) {
            let number = u32::try_from(at / size as u64 + 1).ok().and_then(Pgno::new);
            let number = number.ok_or(io::ErrorKind::InvalidData)?;
            if number != page_size.lock_page() {
                sum = sum.toggle(Checksum::of_page(number, page));
            }
            at += size as u64;
        }
    }
    Ok(sum)
}

fn private_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the cache folder {}", folder.display()))
}

fn list(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot look into {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Takes everything but the lock out of a copy's folder, which is locked.
fn clear(folder: &Path) -> anyhow::Result<()> {
    for file in list(folder)? {
        if file.file_name().is_some_and(|name| name != LOCK) {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key(name: &str) -> DatabaseKey {
        format!("node/{name}").parse().unwrap()
    }

    async fn fill(cache: &Cache, name: &str, bytes: usize) -> Slot {
        let slot = cache.slot("hub:7443", &key(name)).await.unwrap();
        cache.make_room(&slot, bytes as u64).unwrap();
        fs::write(slot.copy(), vec![1; bytes]).unwrap();
        slot.mark("of no meaning").unwrap();
        slot
    }

    #[tokio::test]
    async fn what_was_not_used_for_longest_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache"), 10_000).unwrap();
        let mode = fs::metadata(dir.path().join("cache")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let mut copies = Vec::new();
        for (number, name) in (1..).zip(["a", "b", "c"]) {
            let slot = fill(&cache, name, 3000).await;
            let mark = fs::File::options().append(true).open(slot.folder.join(MARK)).unwrap();
            mark.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number)).unwrap();
            copies.push(slot.copy());
        }
        fill(&cache, "d", 3000).await;
        assert_eq!(copies.iter().map(|copy| copy.exists()).collect::<Vec<_>>(), [false, true, true]);
        // One that is being moved stays, and what never fits is refused.
        let held = cache.slot("hub:7443", &key("b")).await.unwrap();
        fill(&cache, "e", 3000).await;
        assert_eq!(copies.iter().map(|copy| copy.exists()).collect::<Vec<_>>(), [false, true, false]);
        drop(held);
        let slot = cache.slot("hub:7443", &key("a")).await.unwrap();
        let refused = cache.make_room(&slot, 10_001).unwrap_err().to_string();
        assert!(refused.contains("--cache-max"), "{refused}");
    }

    #[tokio::test]
    async fn a_copy_belongs_to_one_at_a_time_and_must_prove_itself() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().to_owned(), 1 << 20).unwrap();
        let slot = cache.slot("[::1]:7443", &key("a")).await.unwrap();
        let same = key("a");
        let wait = tokio::time::timeout(Duration::from_millis(200), cache.slot("[::1]:7443", &same));
        assert!(wait.await.is_err(), "two have it");
        let other = cache.slot("other:7443", &key("a")).await.unwrap();
        assert_ne!(slot.copy(), other.copy());

        let size = PageSize::new(512).unwrap();
        let pages: Vec<u8> = (0..4 * 512_u32).map(|n| (n % 251) as u8).collect();
        let page = |n: usize| Checksum::of_page(Pgno::new(n as u32 + 1).unwrap(), &pages[n * 512..][..512]);
        let sum = (0..4).fold(Checksum::EMPTY, |sum, n| sum.toggle(page(n)));
        fs::write(slot.copy(), &pages).unwrap();
        assert!(!slot.holds(size, 4, sum), "not marked");
        slot.mark(&sum.to_string()).unwrap();
        assert!(slot.holds(size, 4, sum));
        assert!(!slot.holds(size, 5, sum));
        let mut rotten = pages.clone();
        rotten[700] ^= 1;
        fs::write(slot.copy(), &rotten).unwrap();
        assert!(!slot.holds(size, 4, sum), "rotten");
        slot.clear().unwrap();
        assert!(!slot.copy().exists() && slot.folder.join(LOCK).exists());
    }
}
