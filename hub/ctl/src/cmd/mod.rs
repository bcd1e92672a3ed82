//! One module per noun, one file per verb.

pub(crate) mod agents;
pub(crate) mod ca;
pub(crate) mod cert;
pub(crate) mod choice;
pub(crate) mod completions;
pub(crate) mod databases;
pub(crate) mod destinations;
pub(crate) mod drills;
pub(crate) mod hold;
pub(crate) mod import;
pub(crate) mod jobs;
pub(crate) mod ls;
pub(crate) mod query;
pub(crate) mod reload;
pub(crate) mod restore;
pub(crate) mod retention;
pub(crate) mod snapshots;
pub(crate) mod status;
pub(crate) mod wal;
