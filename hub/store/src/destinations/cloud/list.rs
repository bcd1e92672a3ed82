//! Listings: of one level, of the databases, of objects.

use super::fault::CallError;
use super::{CloudDestination, Kind};
use crate::destinations::object::PAGE_ENTRIES;
use crate::destinations::{Fault, Listed, ListedObject, ObjectPath};
use object_store::ObjectMeta;
use object_store::list::{PaginatedListOptions, PaginatedListResult};
use std::sync::PoisonError;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{AgentName, DatabaseKey, DatabaseName, Level};

/// Marks remembered; past this the memory starts over.
const MAX_MARKS: usize = 256;

impl CloudDestination {
    /// The LTX files of one level, sorted.
    pub(super) async fn files(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, Fault> {
        let folder = self.names.folder(database, level);
        let (mut listed, mut mark) = (Vec::new(), None);
        loop {
            let page =
                self.page(&folder, PaginatedListOptions { page_token: mark, ..options() }, cancel).await?;
            for object in page.result.objects {
                let name = object.location.as_ref().strip_prefix(&folder);
                let Some(range) = name.and_then(name::parse) else { continue };
                listed.push(Listed { level, range, size: object.size, time_ms: modified_ms(&object) });
            }
            mark = page.page_token;
            if mark.is_none() {
                listed.sort_unstable_by_key(|file| file.range);
                return Ok(listed);
            }
        }
    }

    /// The LTX files of all levels, sorted.
    pub(super) async fn all_files(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, Fault> {
        let root = self.names.below(&format!("{database}/ltx/"));
        let (mut listed, mut mark) = (Vec::new(), None);
        loop {
            let page =
                self.page(&root, PaginatedListOptions { page_token: mark, ..options() }, cancel).await?;
            let file = |object: &ObjectMeta| {
                let (folder, file) = object.location.as_ref().strip_prefix(&root)?.split_once('/')?;
                let level = Level::all().find(|level| level.to_string() == folder)?;
                let (range, time_ms) = (name::parse(file)?, modified_ms(object));
                Some(Listed { level, range, size: object.size, time_ms })
            };
            listed.extend(page.result.objects.iter().filter_map(file));
            mark = page.page_token;
            if mark.is_none() {
                listed.sort_unstable_by_key(|file| (file.level, file.range));
                return Ok(listed);
            }
        }
    }

    /// One page of the objects below `folder`.
    pub(super) async fn objects(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        cancel: &CancellationToken,
    ) -> Result<Vec<ListedObject>, Fault> {
        let (root, folder) = (self.names.below(""), self.names.below(&format!("{folder}/")));
        let mut options = options();
        match (self.kind, after) {
            (_, None) => {}
            (Kind::Gcs, Some(after)) => options.offset = Some(self.names.below(after.as_str())),
            (Kind::Abs, Some(after)) => options.page_token = self.mark(&folder, after),
        }
        loop {
            let page = self.page(&folder, options.clone(), cancel).await?;
            let ours = |object: &ObjectMeta| {
                let path = ObjectPath::new(object.location.as_ref().strip_prefix(&root)?).ok()?;
                Some(ListedObject { path, size: object.size, modified_ms: modified_ms(object) })
            };
            let mut listed: Vec<_> = page.result.objects.iter().filter_map(ours).collect();
            listed.sort_unstable_by(|left, right| left.path.cmp(&right.path));
            if let Some(after) = after {
                listed.retain(|object| object.path > *after);
            }
            options.page_token = page.page_token;
            match (&options.page_token, listed.last()) {
                (None, _) => return Ok(listed),
                // A page of nothing but names that are not ours, or come before, is not the end.
                (Some(_), None) => {}
                (Some(mark), Some(last)) => {
                    self.remember(folder, &last.path, mark.clone());
                    return Ok(listed);
                }
            }
        }
    }

    /// The databases with LTX files: the folders of two depths, and a look into each.
    pub(super) async fn databases(&self, cancel: &CancellationToken) -> Result<Vec<DatabaseKey>, Fault> {
        let mut databases = Vec::new();
        for agent in self.folders(&self.names.below(""), cancel).await? {
            let Ok(agent) = AgentName::new(agent) else { continue };
            for database in self.folders(&self.names.below(&format!("{agent}/")), cancel).await? {
                let Ok(database) = DatabaseName::new(database) else { continue };
                let database = DatabaseKey::new(agent.clone(), database);
                if self.has_files(&database, cancel).await? {
                    databases.push(database);
                }
            }
        }
        databases.sort_unstable();
        Ok(databases)
    }

    /// The names of the folders in a folder.
    async fn folders(&self, folder: &str, cancel: &CancellationToken) -> Result<Vec<String>, Fault> {
        let (mut names, mut mark) = (Vec::new(), None);
        loop {
            let asked = PaginatedListOptions { page_token: mark, delimiter: Some("/".into()), ..options() };
            let page = self.page(folder, asked, cancel).await?;
            names.extend(
                page.result.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)),
            );
            mark = page.page_token;
            if mark.is_none() {
                return Ok(names);
            }
        }
    }

    async fn has_files(&self, database: &DatabaseKey, cancel: &CancellationToken) -> Result<bool, Fault> {
        let folder = self.names.below(&format!("{database}/ltx/"));
        let is_level = |text: &str| (0..=9).filter_map(Level::new).any(|level| level.to_string() == text);
        let mut mark = None;
        loop {
            let page =
                self.page(&folder, PaginatedListOptions { page_token: mark, ..options() }, cancel).await?;
            let is_file = |object: &ObjectMeta| {
                let rest = object.location.as_ref().strip_prefix(&folder);
                let parts = rest.and_then(|rest| rest.split_once('/'));
                parts.is_some_and(|(level, file)| is_level(level) && name::parse(file).is_some())
            };
            if page.result.objects.iter().any(is_file) {
                return Ok(true);
            }
            mark = page.page_token;
            if mark.is_none() {
                return Ok(false);
            }
        }
    }

    pub(super) async fn page(
        &self,
        prefix: &str,
        options: PaginatedListOptions,
        cancel: &CancellationToken,
    ) -> Result<PaginatedListResult, Fault> {
        let prefix = (!prefix.is_empty()).then_some(prefix);
        self.call(cancel, 0, self.store.list_paginated(prefix, options)).await.map_err(CallError::into_fault)
    }

    fn mark(&self, folder: &str, after: &ObjectPath) -> Option<String> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.get(&(folder.to_owned(), after.to_string())).cloned()
    }

    fn remember(&self, folder: String, last: &ObjectPath, mark: String) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.kind == Kind::Abs {
            if marks.len() >= MAX_MARKS {
                marks.clear();
            }
            marks.insert((folder, last.to_string()), mark);
        }
    }
}

fn options() -> PaginatedListOptions {
    PaginatedListOptions { max_keys: Some(PAGE_ENTRIES), ..PaginatedListOptions::default() }
}

fn modified_ms(object: &ObjectMeta) -> i64 {
    object.last_modified.timestamp_millis()
}
