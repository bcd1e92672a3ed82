//! Reads a file destination from outside and judges its history: every file whole, no hole, nothing twice.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use walhub_common::ltx::{Decoder, Header, name};
use walhub_common::{Checksum, Level, TxidRange};

/// One LTX file of a destination.
#[derive(Clone, Debug)]
pub struct ReplicaFile {
    /// Where.
    pub path: PathBuf,
    /// By its name.
    pub range: TxidRange,
    /// Its verified header.
    pub header: Header,
}

/// All level 0 files of one database's folder, verified byte for byte, by range.
pub fn files(folder: &Path) -> Result<Vec<ReplicaFile>, String> {
    files_of(folder, [Level::RAW])
}

/// The files of every level, verified, in the order of their transactions: what a destination holds may lie in a compacted
/// file alone.
pub fn files_of_every_level(folder: &Path) -> Result<Vec<ReplicaFile>, String> {
    files_of(folder, Level::all())
}

fn files_of(folder: &Path, levels: impl IntoIterator<Item = Level>) -> Result<Vec<ReplicaFile>, String> {
    let mut found = Vec::new();
    for level in levels {
        let (raw, level) = (level == Level::RAW, folder.join(name::fs_dir(level)));
        if !raw && !level.exists() {
            continue;
        }
        for entry in std::fs::read_dir(&level).map_err(|error| format!("{}: {error}", level.display()))? {
            let path = entry.map_err(|error| error.to_string())?.path();
            let Some(range) = path.file_name().and_then(|name| name::parse(&name.to_string_lossy())) else {
                continue;
            };
            let header = verify(&path)?;
            if header.range != range {
                return Err(format!("{} holds {:?}", path.display(), header.range));
            }
            found.push(ReplicaFile { path, range, header });
        }
    }
    found.sort_by_key(|file| file.range);
    Ok(found)
}

fn verify(path: &Path) -> Result<Header, String> {
    let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let input = BufReader::new(File::open(path).map_err(|error| fault(&error))?);
    let mut decoder = Decoder::new(input).map_err(|error| fault(&error))?;
    let mut page = Vec::new();
    while decoder.next_page(&mut page).map_err(|error| fault(&error))?.is_some() {}
    decoder.finish().map_err(|error| fault(&error))?;
    Ok(*decoder.header())
}

/// The history in a database's folder: from TXID 1 without a hole and without a transaction twice, each file starting
/// from the checksum the one before ended with. Where the database rested, one transaction may lie alone in place of
/// several, which are in compacted files then. Gives the last TXID and checksum.
pub fn audit(folder: &Path) -> Result<(u64, Checksum), String> {
    let files = files(folder)?;
    let compacted = files_of(folder, Level::all().filter(|level| *level != Level::RAW))?;
    let mut next = 1;
    let mut checksum = None;
    for file in &files {
        let alone = file.range.count() == 1 && leads(&compacted, next, file.range.max().get());
        if !alone {
            contiguous(next, file.range)?;
        }
        let provenance = file.header.provenance.as_ref();
        let provenance = provenance.ok_or_else(|| format!("{:?} carries no checksum of ours", file.range))?;
        if provenance.pre != checksum && !(alone && provenance.pre.is_none()) {
            return Err(format!("{:?} starts from {:?}, not {checksum:?}", file.range, provenance.pre));
        }
        checksum = Some(provenance.post);
        next = file.range.max().get() + 1;
    }
    checksum.map(|checksum| (next - 1, checksum)).ok_or_else(|| format!("no file in {}", folder.display()))
}

/// These files lead from `next` to exactly `end`.
fn leads(files: &[ReplicaFile], next: u64, end: u64) -> bool {
    let held = files.iter().map(|file| (file.range.min().get(), file.range.max().get()));
    let within = held.filter(|(_, max)| *max <= end);
    within.fold(next - 1, |held, (min, max)| if min <= held + 1 { held.max(max) } else { held }) == end
}

/// The history in a bucket by its keys: level 0 from TXID 1 without a hole and without a transaction twice. Gives the
/// last TXID.
pub fn audit_keys(keys: &[String]) -> Result<u64, String> {
    let mut next = 1;
    for key in keys.iter().filter(|key| key.contains(&format!("/{}/", name::s3_dir(Level::RAW)))) {
        let file = key.rsplit('/').next().unwrap_or(key);
        let range = name::parse(file).ok_or_else(|| format!("{key} is no LTX file"))?;
        contiguous(next, range)?;
        next = range.max().get() + 1;
    }
    Ok(next - 1)
}

/// `range` must start at `next`: later is a hole, earlier is a transaction twice.
pub fn contiguous(next: u64, range: TxidRange) -> Result<(), String> {
    match range.min().get() {
        min if min > next => Err(format!("a hole: {next} to {} are missing", min - 1)),
        min if min < next => Err(format!("twice: {min} to {} come again in {range:?}", next - 1)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_repeats_are_told_apart() {
        let range = TxidRange::from_raw(5, 7).unwrap();
        assert!(contiguous(5, range).is_ok());
        assert!(contiguous(4, range).unwrap_err().starts_with("a hole"));
        assert!(contiguous(6, range).unwrap_err().starts_with("twice"));
    }
}
