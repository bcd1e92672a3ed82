//! A bank ledger whose every state can be audited: the tables a writer fills, one transfer per transaction, and the
//! check that a copy is exactly a prefix of what was written.
//!
//! Each row names the life (incarnation) of the writer that made it, so that a row of a transaction which never
//! committed can be told from the row that later took its number.

use rusqlite::{Connection, OpenFlags, Transaction, params};
use std::collections::BTreeMap;
use std::path::Path;

/// Accounts in a ledger.
pub const ACCOUNTS: i64 = 64;
/// What each account starts with.
pub const OPENING_BALANCE: i64 = 1_000_000;

const SCHEMA: &str = "
    CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
    CREATE TABLE ledger(seq INTEGER PRIMARY KEY, life INTEGER NOT NULL, source INTEGER NOT NULL,
                        target INTEGER NOT NULL, amount INTEGER NOT NULL, note BLOB NOT NULL);
    CREATE INDEX ledger_by_source ON ledger(source, amount);";

/// Creates the tables in an empty database, in WAL mode, in one transaction. Does nothing to one that has them.
pub fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let there: i64 =
        transaction
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'ledger'", [], |r| r.get(0))?;
    if there == 0 {
        transaction.execute_batch(SCHEMA)?;
        for id in 0..ACCOUNTS {
            transaction.execute("INSERT INTO account VALUES (?1, ?2)", params![id, OPENING_BALANCE])?;
        }
    }
    transaction.commit()
}

/// Number of the last transfer, 0 when there is none.
pub fn last_seq(connection: &Connection) -> rusqlite::Result<u64> {
    let seq: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM ledger", [], |row| row.get(0))?;
    Ok(seq as u64)
}

/// Writes transfer `seq` into an open transaction.
pub fn transfer(tx: &Transaction<'_>, seq: u64, life: u64, note_bytes: usize) -> rusqlite::Result<()> {
    let (source, target, amount) = terms(seq, life);
    let mut update = tx.prepare("UPDATE account SET balance = balance + ?2 WHERE id = ?1")?;
    update.execute(params![source, -amount])?;
    update.execute(params![target, amount])?;
    tx.prepare("INSERT INTO ledger VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        seq as i64,
        life as i64,
        source,
        target,
        amount,
        note(seq, life, note_bytes)
    ])?;
    Ok(())
}

fn terms(seq: u64, life: u64) -> (i64, i64, i64) {
    let mixed = mix(seq ^ mix(life));
    let source = (mixed % ACCOUNTS as u64) as i64;
    let target = ((source as u64 + 1 + (mixed >> 16) % (ACCOUNTS as u64 - 1)) % ACCOUNTS as u64) as i64;
    (source, target, ((mixed >> 32) % 1000) as i64 + 1)
}

fn note(seq: u64, life: u64, bytes: usize) -> Vec<u8> {
    let mut state = mix(seq.wrapping_mul(31) ^ life);
    (0..bytes)
        .map(|_| {
            state = mix(state);
            state as u8
        })
        .collect()
}

/// One step of splitmix64.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The transfers of a copy: number to life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Which life wrote which transfer.
    pub transfers: BTreeMap<u64, u64>,
}

impl Audit {
    /// Number of the last transfer.
    pub fn last(&self) -> u64 {
        self.transfers.keys().next_back().copied().unwrap_or(0)
    }

    /// Rows here that `source` does not have: (extra, missing, where extra rows never committed).
    pub fn against(&self, source: &Audit) -> (usize, usize) {
        let extra =
            self.transfers.iter().filter(|(seq, life)| source.transfers.get(seq) != Some(life)).count();
        let missing =
            source.transfers.iter().filter(|(seq, life)| self.transfers.get(seq) != Some(life)).count();
        (extra, missing)
    }
}

/// Audits a ledger: SQLite's own integrity check, no hole in the numbers, every row as its writer made it, every
/// balance the sum of its transfers.
pub fn audit(path: &Path) -> Result<Audit, String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| error.to_string())?;
    audit_connection(&connection)
}

/// As [`audit`], on an open connection (of a live database, for example).
pub fn audit_connection(connection: &Connection) -> Result<Audit, String> {
    let text = |error: rusqlite::Error| error.to_string();
    let integrity: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(text)?;
    if integrity != "ok" {
        return Err(format!("integrity_check: {integrity}"));
    }
    let mut balances = vec![OPENING_BALANCE; ACCOUNTS as usize];
    let mut transfers = BTreeMap::new();
    let mut select = connection
        .prepare("SELECT seq, life, source, target, amount, note FROM ledger ORDER BY seq")
        .map_err(text)?;
    let mut rows = select.query([]).map_err(text)?;
    while let Some(row) = rows.next().map_err(text)? {
        let seq = row.get::<_, i64>(0).map_err(text)? as u64;
        let life = row.get::<_, i64>(1).map_err(text)? as u64;
        let found: (i64, i64, i64) =
            (row.get(2).map_err(text)?, row.get(3).map_err(text)?, row.get(4).map_err(text)?);
        let blob: Vec<u8> = row.get(5).map_err(text)?;
        if seq != transfers.len() as u64 + 1 {
            return Err(format!("transfer {} is missing before {seq}", transfers.len() + 1));
        }
        if found != terms(seq, life) || blob != note(seq, life, blob.len()) {
            return Err(format!("transfer {seq} of life {life} is not as it was written: {found:?}"));
        }
        balances[found.0 as usize] -= found.2;
        balances[found.1 as usize] += found.2;
        transfers.insert(seq, life);
    }
    for (id, expected) in balances.iter().enumerate() {
        let balance: i64 = connection
            .query_row("SELECT balance FROM account WHERE id = ?1", [id as i64], |row| row.get(0))
            .map_err(text)?;
        if balance != *expected {
            return Err(format!("account {id} holds {balance}, its transfers say {expected}"));
        }
    }
    Ok(Audit { transfers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(transfers: u64) -> (crate::scratch::Scratch, std::path::PathBuf) {
        let scratch = crate::scratch::Scratch::new("ledger");
        let path = scratch.join("ledger.db");
        let mut connection = Connection::open(&path).unwrap();
        create(&mut connection).unwrap();
        create(&mut connection).unwrap();
        for seq in 1..=transfers {
            let tx = connection.transaction().unwrap();
            transfer(&tx, seq, 7, 40).unwrap();
            tx.commit().unwrap();
        }
        assert_eq!(last_seq(&connection).unwrap(), transfers);
        (scratch, path)
    }

    #[test]
    fn an_honest_ledger_passes() {
        let (_scratch, path) = written(30);
        assert_eq!(audit(&path).unwrap().last(), 30);
    }

    #[test]
    fn a_lost_row_and_a_changed_amount_are_found() {
        for damage in
            ["DELETE FROM ledger WHERE seq = 12", "UPDATE ledger SET amount = amount + 1 WHERE seq = 9"]
        {
            let (_scratch, path) = written(30);
            Connection::open(&path).unwrap().execute_batch(damage).unwrap();
            assert!(audit(&path).is_err(), "{damage}");
        }
    }

    #[test]
    fn a_row_of_another_life_is_extra_and_missing() {
        let (_scratch, path) = written(3);
        let source = audit(&path).unwrap();
        let mut copy = source.clone();
        copy.transfers.insert(3, 8);
        assert_eq!(copy.against(&source), (1, 1));
        copy.transfers.remove(&3);
        assert_eq!(copy.against(&source), (0, 1));
    }
}
