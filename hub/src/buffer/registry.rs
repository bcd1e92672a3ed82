//! The databases of this hub, and the end of each one's segments: as accepted, and as on disk. No I/O.

use super::failure::Failure;
use super::log::head::{DatabaseHead, MAX_PATH_BYTES};
use super::log::snapshot::{Cursors, DatabaseState, State};
use super::tail::{Tail, check_adoption, position_after};
use super::{BufferError, Chunk, DatabaseId, Registered, SegmentMeta};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::Mutex as Gate;
use walhub_common::{DatabaseKey, Pos};

/// All databases.
#[derive(Debug)]
pub(super) struct Registry {
    databases: HashMap<DatabaseId, Database>,
    names: BTreeMap<DatabaseKey, DatabaseId>,
    next_id: u64,
}

#[derive(Debug)]
struct Database {
    /// As on disk.
    registered: Registered,
    /// False until its registration is on disk; nobody is told of it before.
    durable: bool,
    /// As accepted: ahead of `registered` by what waits to be written.
    tail: Tail,
    /// Where `tail` would be had a failure not thrown it back: chunks that follow it hear of that failure.
    thrown_back: Option<(Tail, Failure)>,
    /// Keeps appends in the order in which they came.
    gate: Arc<Gate<()>>,
}

/// What a registration has to do.
#[derive(Debug)]
pub(super) enum Registration {
    /// Nothing: it is on disk as asked.
    Known(Registered),
    /// Write this.
    Write(DatabaseHead),
}

impl Registry {
    /// As read from the log.
    pub(super) fn new(state: &State) -> Self {
        let mut registry = Self { databases: HashMap::new(), names: BTreeMap::new(), next_id: state.next_id };
        for DatabaseState { head, position, time_ms } in state.databases.values() {
            registry.insert(head, true);
            let database = registry.databases.get_mut(&head.id).expect("BUG: just inserted");
            database.registered.position = *position;
            database.registered.time_ms = *time_ms;
            database.tail = Tail::at(*position);
        }
        registry
    }

    fn insert(&mut self, head: &DatabaseHead, durable: bool) {
        let registered = Registered {
            id: head.id,
            key: head.key.clone(),
            lineage: head.lineage,
            position: None,
            time_ms: 0,
            path: head.path.clone(),
        };
        self.names.insert(head.key.clone(), head.id);
        let database =
            Database { registered, durable, tail: Tail::default(), thrown_back: None, gate: Arc::default() };
        self.databases.insert(head.id, database);
    }

    /// What is on disk, with these cursors.
    pub(super) fn snapshot(&self, cursors: Cursors) -> State {
        let durable = self.databases.values().filter(|d| d.durable).map(|d| &d.registered);
        let databases = durable.map(|registered| {
            let head = DatabaseHead {
                id: registered.id,
                lineage: registered.lineage,
                key: registered.key.clone(),
                path: registered.path.clone(),
            };
            let state = DatabaseState { head, position: registered.position, time_ms: registered.time_ms };
            (registered.id, state)
        });
        State { databases: databases.collect(), next_id: self.next_id, cursors }
    }

    /// One database by name.
    pub(super) fn find(&self, key: &DatabaseKey) -> Option<&Registered> {
        self.get(*self.names.get(key)?)
    }

    /// One database by number.
    pub(super) fn get(&self, id: DatabaseId) -> Option<&Registered> {
        self.databases.get(&id).filter(|d| d.durable).map(|d| &d.registered)
    }

    /// All databases, by name.
    pub(super) fn all(&self) -> Vec<Registered> {
        self.names.values().filter_map(|id| self.get(*id)).cloned().collect()
    }

    /// The turnstile of a database's appends.
    pub(super) fn gate(&self, id: DatabaseId) -> Result<Arc<Gate<()>>, BufferError> {
        self.database(id).map(|d| Arc::clone(&d.gate))
    }

    fn database(&self, id: DatabaseId) -> Result<&Database, BufferError> {
        self.databases.get(&id).filter(|d| d.durable).ok_or(BufferError::UnknownDatabase(id))
    }

    /// Finds a database, or gives it a number. A registration that is under way is written a second time: whoever asks
    /// waits for a sync of his own.
    pub(super) fn register(&mut self, key: &DatabaseKey, lineage: u64, path: &str) -> Registration {
        let path = cut_path(path);
        let known = self.names.get(key).and_then(|id| self.databases.get(id));
        if let Some(Database { registered, durable, .. }) = known {
            if *durable && registered.path == path {
                return Registration::Known(registered.clone());
            }
            let (id, lineage) = (registered.id, registered.lineage);
            return Registration::Write(DatabaseHead {
                id,
                lineage,
                key: key.clone(),
                path: path.to_owned(),
            });
        }
        let id = DatabaseId(self.next_id);
        self.next_id += 1;
        let head = DatabaseHead { id, lineage, key: key.clone(), path: path.to_owned() };
        self.insert(&head, false);
        Registration::Write(head)
    }

    /// A registration is on disk.
    pub(super) fn registered(&mut self, head: &DatabaseHead) -> Registered {
        if !self.databases.contains_key(&head.id) {
            self.insert(head, true);
        }
        let database = self.databases.get_mut(&head.id).expect("BUG: just inserted");
        database.durable = true;
        database.registered.path.clone_from(&head.path);
        database.registered.clone()
    }

    /// Accepts a position from elsewhere; the database that has it then.
    pub(super) fn adopt(&mut self, id: DatabaseId, position: Pos) -> Result<DatabaseHead, BufferError> {
        let database = self.databases.get_mut(&id).filter(|d| d.durable);
        let database = database.ok_or(BufferError::UnknownDatabase(id))?;
        check_adoption(&database.tail, &database.registered, position)?;
        database.thrown_back = None;
        database.tail = Tail::at(Some(position));
        let Registered { key, lineage, path, .. } = database.registered.clone();
        Ok(DatabaseHead { id, lineage, key, path })
    }

    /// A position from elsewhere is on disk.
    pub(super) fn adopted(&mut self, id: DatabaseId, position: Pos, time_ms: i64) -> Registered {
        let database = self.databases.get_mut(&id).expect("BUG: position of no database");
        (database.registered.position, database.registered.time_ms) = (Some(position), time_ms);
        database.registered.clone()
    }

    /// Checks a chunk against what was accepted. One that comes behind a chunk that failed fails as that one did.
    pub(super) fn check(&mut self, chunk: &Chunk) -> Result<(), BufferError> {
        self.database(chunk.database)?;
        let database = self.databases.get_mut(&chunk.database).expect("BUG: just found");
        let checked = database.tail.check(chunk);
        if let (Err(_), Some((tail, failure))) = (&checked, &mut database.thrown_back)
            && tail.check(chunk).is_ok()
        {
            tail.take(chunk);
            return Err(failure.to_error());
        }
        checked
    }

    /// Bytes of a checked chunk's segment that were accepted before it.
    pub(super) fn open_bytes(&self, chunk: &Chunk) -> u64 {
        self.databases.get(&chunk.database).map_or(0, |database| database.tail.bytes_before(chunk))
    }

    /// Accepts a checked chunk.
    pub(super) fn accept(&mut self, chunk: &Chunk) {
        let database = self.databases.get_mut(&chunk.database).expect("BUG: the chunk was checked");
        database.thrown_back = None;
        database.tail.take(chunk);
    }

    /// Gives up an unfinished segment. False when there is none.
    pub(super) fn abandon(&mut self, id: DatabaseId) -> Result<bool, BufferError> {
        let database = self.databases.get_mut(&id).ok_or(BufferError::UnknownDatabase(id))?;
        Ok(database.tail.open.take().is_some())
    }

    /// A segment is on disk.
    pub(super) fn completed(&mut self, id: DatabaseId, meta: &SegmentMeta) {
        let database = self.databases.get_mut(&id).expect("BUG: segment of no database");
        database.registered.position = Some(position_after(meta));
        database.registered.time_ms = meta.time_ms;
    }

    /// Forgets everything that was accepted and is not on disk.
    pub(super) fn fall_back(&mut self, failure: &Failure) {
        self.databases.retain(|_, d| d.durable);
        self.names.retain(|_, id| self.databases.contains_key(id));
        for database in self.databases.values_mut() {
            let before = std::mem::replace(&mut database.tail, Tail::at(database.registered.position));
            if before != database.tail {
                database.thrown_back = Some((before, failure.clone()));
            }
        }
    }
}

/// A path is for people: one that is too long for a record is cut.
fn cut_path(path: &str) -> &str {
    &path[..path.floor_char_boundary(MAX_PATH_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Failure {
        Failure::new("test", &std::io::Error::other("no"))
    }

    #[test]
    fn a_database_is_known_when_its_registration_is_on_disk() {
        let mut registry = Registry::new(&State::default());
        let key: DatabaseKey = "a/b".parse().unwrap();
        let Registration::Write(head) = registry.register(&key, 9, "/x") else { panic!("it is new") };
        assert!(registry.find(&key).is_none());
        assert!(registry.gate(head.id).is_err());
        let Registration::Write(again) = registry.register(&key, 10, "/x") else { panic!("not on disk yet") };
        assert_eq!(again, head, "one number and one lineage");
        registry.registered(&head);
        assert!(
            matches!(registry.register(&key, 10, "/x"), Registration::Known(known) if known.lineage == 9)
        );
        registry.fall_back(&failure());
        assert!(registry.find(&key).is_some());
    }

    #[test]
    fn a_registration_that_fails_is_forgotten_and_its_number_is_not_used_again() {
        let mut registry = Registry::new(&State::default());
        let key: DatabaseKey = "a/b".parse().unwrap();
        let Registration::Write(first) = registry.register(&key, 9, "") else { panic!("it is new") };
        registry.fall_back(&failure());
        let Registration::Write(second) = registry.register(&key, 9, "") else { panic!("it is new") };
        assert_ne!(first.id, second.id);
    }

    #[test]
    fn long_paths_are_cut_between_characters() {
        let path = "ä".repeat(3000);
        assert_eq!(cut_path(&path).len(), MAX_PATH_BYTES);
        assert_eq!(cut_path(&format!("x{path}")).len(), MAX_PATH_BYTES - 1);
        assert_eq!(cut_path("/short"), "/short");
    }
}
