//! Reading packs back: which there are, and what their indices say.

use super::catalog::{self, Catalog, Place};
use super::format::{self, Entry, FOOTER_BYTES, Footer, PackError};
use crate::destinations::error::{Context, Operation};
use crate::destinations::object::collect;
use crate::destinations::{DestinationError, DynDestination, Fault, ObjectPath};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;

/// Folder of all packs.
pub(super) const FOLDER: &str = "walhub/packs";
/// End of a pack's name.
const SUFFIX: &str = ".pack";
/// Indices read at the same time.
const AT_ONCE: usize = 16;
/// Bytes read first from the end of a pack: footer and index of some 400 files.
const FIRST_READ: u64 = 64 * 1024;

pub(super) fn folder() -> ObjectPath {
    ObjectPath::new(FOLDER).expect("BUG: a good path")
}

/// Where pack `seq` lies.
pub(super) fn path(seq: u64) -> ObjectPath {
    folder().join(&format!("{seq:016x}{SUFFIX}")).expect("BUG: a good path")
}

/// The number of a pack; `None` for any other object.
fn seq_of(path: &ObjectPath) -> Option<u64> {
    let seq = u64::from_str_radix(path.name().strip_suffix(SUFFIX)?, 16).ok()?;
    (*path == self::path(seq)).then_some(seq)
}

/// Refuses a place that is to be used without packs while it holds some: what lies in them would not be seen, and would
/// seem to be missing. One request where there is none.
pub async fn refuse(place: &DynDestination, cancel: &CancellationToken) -> Result<(), DestinationError> {
    let (folder, mut after) = (folder(), None);
    loop {
        let page = place.list_objects(&folder, after.as_ref(), cancel).await?;
        let Some(last) = page.last() else { return Ok(()) };
        if let Some(pack) = page.iter().find(|object| seq_of(&object.path).is_some()) {
            let context = Context::new(place.name(), Operation::Probe, &pack.path);
            return Err(context.error(Fault::Misconfigured(
                "this place was used with layout: packed, and what lies in its packs is not seen by layout: litestream; \
                 set layout: packed again, or give this layout a place of its own, which the hub fills by itself"
                    .to_owned(),
            )));
        }
        after = Some(last.path.clone());
    }
}

/// What came of reading the index of a pack.
#[derive(Debug)]
pub(super) enum Index {
    /// Its files.
    Read(Vec<Entry>),
    /// There is no such pack (any more).
    Absent,
    /// It is no pack. The rest of the destination is not concerned.
    Damaged,
}

/// Reads the index of pack `seq`, in one request unless it is long.
pub(super) async fn index(
    inner: &DynDestination,
    seq: u64,
    cancel: &CancellationToken,
) -> Result<Index, DestinationError> {
    let path = path(seq);
    match read_index(inner, &path, cancel).await {
        Ok(Ok(entries)) => Ok(Index::Read(entries)),
        Ok(Err(error)) => {
            tracing::error!(destination = %inner.name(), object = %path, %error, "a pack is damaged: its files cannot be read");
            Ok(Index::Damaged)
        }
        Err(DestinationError { fault: Fault::NotFound, .. }) => Ok(Index::Absent),
        Err(error) => Err(error),
    }
}

/// The indices of several packs, in their order.
pub(super) fn indices<'a>(
    inner: &'a DynDestination,
    packs: Vec<u64>,
    cancel: &'a CancellationToken,
) -> BoxStream<'a, Result<(u64, Index), DestinationError>> {
    let read = move |seq| async move { Ok((seq, index(inner, seq, cancel).await?)) };
    stream::iter(packs.into_iter().map(read)).buffered(AT_ONCE).boxed()
}

async fn read_index(
    inner: &DynDestination,
    path: &ObjectPath,
    cancel: &CancellationToken,
) -> Result<Result<Vec<Entry>, PackError>, DestinationError> {
    let read = |bytes: u64| async move {
        collect(inner.open_object_end(path, bytes, cancel).await?, bytes as usize).await
    };
    let mut end = read(FIRST_READ).await?;
    let footer = match Footer::parse(&end) {
        Ok(footer) => footer,
        Err(error) => return Ok(Err(error)),
    };
    let wanted = footer.index_bytes + FOOTER_BYTES as u64;
    if wanted > end.len() as u64 && end.len() as u64 >= FIRST_READ {
        end = read(wanted).await?;
    }
    // A whole pack that is shorter than what was asked for must be as long as its footer says.
    let whole = (end.len() as u64) < FIRST_READ;
    if wanted > end.len() as u64 || (whole && end.len() as u64 != footer.pack_bytes()) {
        return Ok(Err(PackError::Footer("it is not as long as it says")));
    }
    let index = end.len() - wanted as usize..end.len() - FOOTER_BYTES;
    Ok(format::parse_index(&footer, &end[index]))
}

/// All packs, in the order of their numbers, and the number after the last one.
///
/// One listing and one read per pack. A pack that vanished since the listing is none; one that the listing does not show
/// yet is looked for by its number, so that a listing which lags behind hides nothing that was written last.
pub(super) async fn all(
    inner: &DynDestination,
    cancel: &CancellationToken,
) -> Result<(Catalog, u64), DestinationError> {
    let listed = numbers(inner, cancel).await?;
    let mut next = listed.last().map_or(0, |seq| seq + 1);
    let mut catalog = Catalog::default();
    let mut indices = indices(inner, listed, cancel);
    while let Some((seq, index)) = indices.try_next().await? {
        if let Index::Read(entries) = index {
            catalog.add(seq, &entries);
        }
    }
    loop {
        match index(inner, next, cancel).await? {
            Index::Absent => return Ok((catalog, next)),
            Index::Read(entries) => catalog.add(next, &entries),
            Index::Damaged => {}
        }
        next += 1;
    }
}

async fn numbers(inner: &DynDestination, cancel: &CancellationToken) -> Result<Vec<u64>, DestinationError> {
    let (folder, mut after, mut numbers) = (folder(), None, Vec::new());
    loop {
        let page = inner.list_objects(&folder, after.as_ref(), cancel).await?;
        numbers.extend(page.iter().filter_map(|object| seq_of(&object.path)));
        match page.last() {
            Some(last) => after = Some(last.path.clone()),
            None => return Ok(numbers),
        }
    }
}

/// The bytes of a file in a pack, proved by its hash.
pub(super) async fn file(
    inner: &DynDestination,
    place: &Place,
    cancel: &CancellationToken,
) -> Result<Bytes, DestinationError> {
    let path = path(place.seq);
    let (begin, length) = (u64::from(place.offset), place.length as usize);
    let range = begin..begin + u64::from(place.length);
    let bytes = collect(inner.open_object(&path, range, cancel).await?, length).await?;
    let found = catalog::check_of(blake3::hash(&bytes).as_bytes());
    if bytes.len() == length && found == place.check {
        return Ok(bytes);
    }
    let text = format!("file {} at byte {begin} of it does not match its checksum", place.range);
    Err(Context::new(inner.name(), Operation::Open, &path).error(Fault::Corrupt(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_name_of_a_pack_is_one() {
        assert_eq!(path(0xab).as_str(), "walhub/packs/00000000000000ab.pack");
        assert_eq!(seq_of(&path(u64::MAX)), Some(u64::MAX));
        for other in ["ab.pack", "00000000000000AB.pack", "00000000000000ab.tmp", "x/00000000000000ab.pack"] {
            assert_eq!(seq_of(&folder().join(other).unwrap()), None, "{other}");
        }
    }
}
