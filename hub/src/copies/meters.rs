//! Counters of requests, one per place, that outlive a restart of the hub: a day's budget would be worth nothing otherwise.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use walhub_common::{DestinationName, clock};
use walhub_store::destinations::limited::{Day, Meter, Requests};

const FILE: &str = "requests.json";

/// One place's day, as it is written down.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    day: i64,
    puts: u64,
    lists: u64,
    gets: u64,
    deletes: u64,
}

/// All of them, by the name of the place's cursors.
#[derive(Debug, Default)]
pub struct Meters {
    file: Option<PathBuf>,
    all: Mutex<BTreeMap<DestinationName, Arc<Meter>>>,
}

impl Meters {
    /// Goes on from what lies in the data folder. A file that cannot be read counts for nothing, with a warning: it is no
    /// reason to stand still.
    pub fn open(data_dir: &Path) -> Self {
        let file = data_dir.join(FILE);
        let all = read(&file).unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), %error, "requests of today are counted anew");
            BTreeMap::new()
        });
        Self { file: Some(file), all: Mutex::new(all) }
    }

    /// The counter of a place.
    pub fn of(&self, cursor: &DestinationName) -> Arc<Meter> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(cursor.clone()).or_default().clone()
    }

    /// Writes all of them down. Blocking.
    pub fn save(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let now_ms = clock::now_ms();
        let written: BTreeMap<String, Written> = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            let day = |meter: &Meter| {
                let Day { number, requests: Requests { puts, lists, gets, deletes } } = meter.day(now_ms);
                Written { day: number, puts, lists, gets, deletes }
            };
            all.iter().map(|(name, meter)| (name.to_string(), day(meter))).collect()
        };
        let temp = file.with_extension("tmp");
        std::fs::write(&temp, serde_json::to_vec(&written).map_err(io::Error::other)?)?;
        std::fs::rename(&temp, file)
    }
}

fn read(file: &Path) -> io::Result<BTreeMap<DestinationName, Arc<Meter>>> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let written: BTreeMap<String, Written> = serde_json::from_slice(&text).map_err(io::Error::other)?;
    let mut all = BTreeMap::new();
    for (name, Written { day, puts, lists, gets, deletes }) in written {
        let name = DestinationName::new(name).map_err(io::Error::other)?;
        let requests = Requests { puts, lists, gets, deletes };
        all.insert(name, Arc::new(Meter::from_day(Day { number: day, requests })));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_store::destinations::limited::Kind;

    #[test]
    fn counts_outlive_a_restart_and_a_damaged_file_is_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let name: DestinationName = "s3-1".parse().unwrap();
        let meters = Meters::open(dir.path());
        meters.of(&name).count(Kind::Put, 7, clock::now_ms());
        meters.save().unwrap();
        let again = Meters::open(dir.path());
        let midnight_passed = again.of(&name).today(clock::now_ms()) == Requests::default();
        assert!(again.of(&name).today(clock::now_ms()).puts == 7 || midnight_passed);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Meters::open(dir.path()).of(&name).today(clock::now_ms()).total(), 0);
    }
}
