//! Objects of a destination that are no LTX files: walhub's own (packs, the mirror of the hub), by their path.
//!
//! Their folder is `walhub/…` below the destination's root, which neither Litestream nor a listing of LTX files looks
//! into. The paths are the same text for every kind of destination.

use futures_util::stream::{BoxStream, TryStreamExt};
use std::fmt;
use walhub_common::{AgentName, DatabaseKey, DatabaseName};

use super::DestinationError;
use bytes::{Bytes, BytesMut};

/// Longest path, bytes.
pub const MAX_PATH_BYTES: usize = 512;
/// Most entries of one page of a listing.
pub const PAGE_ENTRIES: usize = 1000;
/// Most files or objects that one request deletes.
pub const DELETE_BATCH: usize = 1000;

/// Path of an object, or of a folder of objects, below the destination's root: parts separated by `/`, each of letters,
/// digits, `.`, `_`, `-`, none empty, none beginning with a dot (so there is no `..`), [`MAX_PATH_BYTES`] at most.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectPath(String);

/// A path that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("object path {path:?} is not allowed: {reason}")]
pub struct ObjectPathError {
    /// The path, cut to a printable length.
    pub path: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ObjectPath {
    /// Checks and takes a path.
    pub fn new(path: impl Into<String>) -> Result<Self, ObjectPathError> {
        let path = path.into();
        let reason = if path.len() > MAX_PATH_BYTES {
            "it is longer than 512 bytes"
        } else if path.split('/').any(str::is_empty) {
            "a part of it is empty"
        } else if path.split('/').any(|part| part.starts_with('.')) {
            "a part of it begins with a dot"
        } else if !path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/')) {
            "only letters, digits, '.', '_', '-' and '/' are allowed"
        } else {
            return Ok(Self(path));
        };
        Err(ObjectPathError { path: path.chars().take(MAX_PATH_BYTES).collect(), reason })
    }

    /// The path of `rest` (one part or several) in this folder.
    pub fn join(&self, rest: &str) -> Result<Self, ObjectPathError> {
        Self::new(format!("{self}/{rest}"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// What is left of the path below `folder`; `None` when it does not lie there.
    pub fn below(&self, folder: &ObjectPath) -> Option<&str> {
        self.0.strip_prefix(&folder.0)?.strip_prefix('/')
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::str::FromStr for ObjectPath {
    type Err = ObjectPathError;

    fn from_str(text: &str) -> Result<Self, ObjectPathError> {
        Self::new(text)
    }
}

/// One listed object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedObject {
    /// Its path below the destination's root.
    pub path: ObjectPath,
    /// Bytes.
    pub size: u64,
    /// When it was stored, by the destination's clock, Unix ms.
    pub modified_ms: i64,
}

/// What a put of an object does with one that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutMode {
    /// Nothing: a create-only put, as of an LTX file.
    Create,
    /// Replaces it, whoever wrote it: the last writer wins. Readers see the old or the new one, never a mixture.
    Replace,
}

/// A stream's bytes in one piece; what is past `limit` bytes is not read.
pub async fn collect(
    mut stream: BoxStream<'static, Result<Bytes, DestinationError>>,
    limit: usize,
) -> Result<Bytes, DestinationError> {
    let mut all = BytesMut::new();
    while let Some(piece) = stream.try_next().await? {
        all.extend_from_slice(&piece[..piece.len().min(limit - all.len())]);
        if all.len() == limit {
            break;
        }
    }
    Ok(all.freeze())
}

/// The database whose LTX file lies at `rest`, a path below the root as an object store lists it.
pub(super) fn database_of(rest: &str, is_level: impl Fn(&str) -> bool) -> Option<DatabaseKey> {
    let mut parts = rest.splitn(3, '/');
    let (agent, database) = (AgentName::new(parts.next()?).ok()?, DatabaseName::new(parts.next()?).ok()?);
    let (level, file) = parts.next()?.rsplit_once('/')?;
    walhub_common::ltx::name::parse(file)?;
    is_level(level).then(|| DatabaseKey::new(agent, database))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_the_root() {
        for good in
            ["a", "walhub/packs/0000000000000001.pack", "walhub/hub/agents/node-1.json", &"x".repeat(512)]
        {
            assert_eq!(ObjectPath::new(good).unwrap().as_str(), good);
        }
        for bad in
            ["", "/", "/a", "a/", "a//b", "..", "a/../b", "a/.b", "a b", "a\\b", "a\0", "ä", &"x".repeat(513)]
        {
            assert!(ObjectPath::new(bad).is_err(), "{bad}");
        }
        assert!(ObjectPath::new("a").unwrap().join("../b").is_err());
    }

    #[test]
    fn a_path_knows_its_folder() {
        let folder = ObjectPath::new("walhub/packs").unwrap();
        let path = folder.join("1.pack").unwrap();
        assert_eq!((path.as_str(), path.name()), ("walhub/packs/1.pack", "1.pack"));
        assert_eq!(path.below(&folder), Some("1.pack"));
        assert_eq!(ObjectPath::new("walhub/packsx/1").unwrap().below(&folder), None);
        assert_eq!(folder.below(&folder), None);
    }

    #[test]
    fn a_database_is_known_by_an_ltx_file() {
        let database = |rest: &str| database_of(rest, |level| level == "0000").map(|key| key.to_string());
        assert_eq!(
            database("node/app.db/0000/0000000000000001-0000000000000002.ltx").as_deref(),
            Some("node/app.db")
        );
        for other in [
            "node/app.db/0000/notes.txt",
            "node/app.db/xxxx/0000000000000001-0000000000000002.ltx",
            "node/0000/0000000000000001-0000000000000002.ltx",
            "walhub/packs/0000000000000001.pack",
            ".walhub-probe/x/0000/0000000000000001-0000000000000002.ltx",
        ] {
            assert_eq!(database(other), None, "{other}");
        }
    }
}
