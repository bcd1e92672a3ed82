//! Words, formats and small tools shared by every walhub crate. No gRPC, no destination in here: bytes in, values out; and no
//! SQLite but in [`sql`], which asks restored files.

pub mod backoff;
pub mod checksum;
pub mod clock;
pub mod config;
pub mod folder_lock;
pub mod ids;
pub mod level;
pub mod limits;
pub mod ltx;
pub mod page;
pub mod page_set;
pub mod pos;
pub mod restore;
pub mod sql;
pub mod stretch;
pub mod task;
pub mod telemetry;
pub mod tls;
pub mod txid;
pub mod wal;

#[cfg(any(test, feature = "testutil"))]
pub mod testutil;

pub use checksum::Checksum;
pub use ids::{AgentName, DatabaseKey, DatabaseName, DestinationName};
pub use level::Level;
pub use page::{PageSize, Pgno};
pub use page_set::PageSet;
pub use pos::Pos;
pub use txid::{Txid, TxidRange};
