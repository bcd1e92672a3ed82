//! Listings: of one level, of the databases, of objects.

use super::S3Destination;
use super::fault::CallError;
use crate::destinations::object::{self, PAGE_ENTRIES};
use crate::destinations::{Fault, Listed, ListedObject, ObjectPath};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::Object;
use std::collections::BTreeSet;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, Level};

impl S3Destination {
    /// The LTX files of one level, sorted.
    pub(super) async fn files(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, Fault> {
        let folder = self.names.folder(database, level);
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = self.page(&folder, after, cancel).await?;
            for object in page.contents() {
                let name = object.key().and_then(|key| key.strip_prefix(&folder));
                let Some(range) = name.and_then(name::parse) else { continue };
                listed.push(Listed { level, range, size: size(object), time_ms: modified_ms(object) });
            }
            after = last_key(&page)?;
            if after.is_none() {
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
        let root = self.names.below(&format!("{database}/"));
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = self.page(&root, after, cancel).await?;
            let file = |object: &Object| {
                let (folder, file) = object.key()?.strip_prefix(&root)?.split_once('/')?;
                let level = Level::all().find(|level| name::s3_dir(*level) == folder)?;
                let (range, time_ms) = (name::parse(file)?, modified_ms(object));
                Some(Listed { level, range, size: size(object), time_ms })
            };
            listed.extend(page.contents().iter().filter_map(file));
            after = last_key(&page)?;
            if after.is_none() {
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
        let mut after = after.map(|after| self.names.below(after.as_str()));
        loop {
            let page = self.page(&folder, after, cancel).await?;
            let ours = |object: &Object| {
                let path = ObjectPath::new(object.key()?.strip_prefix(&root)?).ok()?;
                Some(ListedObject { path, size: size(object), modified_ms: modified_ms(object) })
            };
            let listed: Vec<_> = page.contents().iter().filter_map(ours).collect();
            after = last_key(&page)?;
            // A page of nothing but names that are not ours is not the end.
            if !listed.is_empty() || after.is_none() {
                return Ok(listed);
            }
        }
    }

    /// The databases with LTX files: leaps from one database to the next.
    pub(super) async fn databases(&self, cancel: &CancellationToken) -> Result<Vec<DatabaseKey>, Fault> {
        let root = self.names.below("");
        let is_level =
            |folder: &str| (0..=9).filter_map(Level::new).any(|level| name::s3_dir(level) == folder);
        let (mut databases, mut after) = (BTreeSet::new(), None);
        loop {
            let page = self.page(&root, after, cancel).await?;
            let database =
                |object: &Object| object::database_of(object.key()?.strip_prefix(&root)?, is_level);
            let last = page.contents().last().and_then(database);
            databases.extend(page.contents().iter().filter_map(database));
            after = match (last_key(&page)?, last) {
                (None, _) => return Ok(databases.into_iter().collect()),
                // The byte after the slash: all that is left of this database comes before it.
                (Some(_), Some(known)) => Some(self.names.below(&format!("{known}0"))),
                (after, None) => after,
            };
        }
    }

    async fn page(
        &self,
        prefix: &str,
        after: Option<String>,
        cancel: &CancellationToken,
    ) -> Result<ListObjectsV2Output, Fault> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix)
            .max_keys(PAGE_ENTRIES as i32)
            .set_start_after(after);
        self.call(cancel, 0, request.send()).await.map_err(CallError::into_fault)
    }
}

/// The name after which the next page begins; `None` after the last page.
fn last_key(page: &ListObjectsV2Output) -> Result<Option<String>, Fault> {
    if page.is_truncated() != Some(true) {
        return Ok(None);
    }
    match page.contents().last().and_then(Object::key) {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(Fault::Corrupt("the server promises more names but sends none".into())),
    }
}

fn size(object: &Object) -> u64 {
    object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0)
}

fn modified_ms(object: &Object) -> i64 {
    object.last_modified().and_then(|time| time.to_millis().ok()).unwrap_or(0)
}
