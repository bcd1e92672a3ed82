//! How the last order of each database ended, on disk: an order that the hub repeats because it never heard of its end is
//! answered, not carried out a second time over what the application wrote since.

use crate::disk::{self, Disk};
use crate::restore::Order;
use crate::state_dir::StateDir;
use serde::{Deserialize, Serialize};
use std::io;
use walhub_common::DatabaseName;
use walhub_proto::v1::{OrderUpdate, Position};

const FILE: &str = "order";

#[derive(Serialize, Deserialize)]
struct End {
    id: String,
    state: i32,
    bytes: u64,
    reached: Option<(u64, u64)>,
    new_txid: u64,
    safety_txid: u64,
    message: String,
    elapsed_ms: u64,
    #[serde(default)]
    kept: String,
}

/// How the order `id` of a database ended, if it was its last one. Blocking.
pub(super) fn read(state: &StateDir, name: &DatabaseName, id: &str) -> Option<OrderUpdate> {
    let text = std::fs::read(state.folder_of(name).join(FILE)).ok()?;
    let end: End = serde_json::from_slice(&text).ok()?;
    (end.id == id).then(|| OrderUpdate {
        id: end.id,
        state: end.state,
        bytes: end.bytes,
        total_bytes: end.bytes,
        reached: end.reached.map(|(txid, checksum)| Position { txid, checksum }),
        new_txid: end.new_txid,
        safety_txid: end.safety_txid,
        message: end.message,
        elapsed_ms: end.elapsed_ms,
        kept: end.kept,
    })
}

/// Records how an order ended. Durable when it returns. Blocking.
pub(super) fn write(
    state: &StateDir,
    disk: &dyn Disk,
    order: &Order,
    update: &OrderUpdate,
) -> io::Result<()> {
    let end = End {
        id: update.id.clone(),
        state: update.state,
        bytes: update.bytes,
        reached: update.reached.as_ref().map(|pos| (pos.txid, pos.checksum)),
        new_txid: update.new_txid,
        safety_txid: update.safety_txid,
        message: update.message.clone(),
        elapsed_ms: update.elapsed_ms,
        kept: update.kept.clone(),
    };
    let folder = state.database(&order.database, &order.path)?;
    disk::replace(disk, &folder, FILE, &serde_json::to_string(&end)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::Mode;
    use walhub_common::{Checksum, Pos, Txid};
    use walhub_proto::v1::OrderState;

    #[test]
    fn only_the_last_order_of_a_database_is_remembered_and_damage_is_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let until = Pos { txid: Txid::new(7).unwrap(), checksum: Checksum::EMPTY };
        let order = Order {
            id: "r1/0".into(),
            database: DatabaseName::new("app.db").unwrap(),
            path: "/srv/app.db".into(),
            until,
            mode: Mode::InPlace,
            checks: Vec::new(),
            max_bytes_per_second: None,
        };
        let update = OrderUpdate {
            id: order.id.clone(),
            state: OrderState::Done.into(),
            reached: Some(Position { txid: 7, checksum: u64::MAX }),
            new_txid: 9,
            kept: "/srv/app.db.x.walhub-kept".into(),
            ..OrderUpdate::default()
        };
        assert_eq!(read(&state, &order.database, &order.id), None);
        write(&state, &*state.disk(), &order, &update).unwrap();
        assert_eq!(read(&state, &order.database, &order.id), Some(update.clone()));
        assert_eq!(read(&state, &order.database, "r1/1"), None);
        std::fs::write(state.folder_of(&order.database).join(FILE), "{\"id\":").unwrap();
        assert_eq!(read(&state, &order.database, &order.id), None);
    }
}
