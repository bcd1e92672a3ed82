//! A place where Litestream keeps one database, as a source of files: its levels lie right below the place's root.

use super::source::{Source, SourceName};
use crate::destinations::error::{Context, Operation};
use crate::destinations::object::{self, ObjectPath};
use crate::destinations::{DestinationError, DynDestination, Fault, FileKey, Listed};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use std::ops::Range;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, Level};

/// See the module doc. The database that is asked for is ignored: there is only one.
#[derive(Debug, Clone)]
pub struct LitestreamSource {
    place: DynDestination,
    folder: fn(Level) -> String,
}

impl LitestreamSource {
    /// The database that lies at the root of `place`.
    pub fn new(place: DynDestination) -> Self {
        Self { folder: folder(place.kind()), place }
    }

    fn path(&self, level: Level, file: &str) -> Result<ObjectPath, DestinationError> {
        let text = format!("{}/{file}", (self.folder)(level));
        ObjectPath::new(text).map_err(|error| {
            let context = Context::new(self.place.name(), Operation::Open, file);
            context.error(Fault::Misconfigured(error.to_string()))
        })
    }

    async fn level(&self, level: Level, cancel: &CancellationToken) -> Result<Vec<Listed>, DestinationError> {
        let Ok(folder) = ObjectPath::new((self.folder)(level)) else { return Ok(Vec::new()) };
        let (mut files, mut after) = (Vec::new(), None);
        loop {
            let page = self.place.list_objects(&folder, after.as_ref(), cancel).await?;
            let Some(last) = page.last() else { return Ok(files) };
            after = Some(last.path.clone());
            for found in page {
                let range = found.path.below(&folder).and_then(name::parse);
                let (size, time_ms) = (found.size, found.modified_ms);
                files.extend(range.map(|range| Listed { level, range, size, time_ms }));
            }
        }
    }
}

/// Where Litestream puts a level at a place of this kind.
fn folder(kind: &str) -> fn(Level) -> String {
    if kind == "s3" { name::s3_dir } else { name::fs_dir }
}

#[async_trait]
impl Source for LitestreamSource {
    fn name(&self) -> &SourceName {
        self.place.name()
    }

    fn lists_exact_times(&self) -> bool {
        false
    }

    async fn list(
        &self,
        _: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let levels = try_join_all(Level::all().map(|level| self.level(level, cancel))).await?;
        Ok(levels.concat())
    }

    fn kind(&self) -> &'static str {
        self.place.kind()
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let path = self.path(key.level, &name::file_name(key.range))?;
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        object::collect(self.place.open_object(&path, range, cancel).await?, length).await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError> {
        let path = self.path(key.level, &name::file_name(key.range))?;
        self.place.open_object(&path, offset..u64::MAX, cancel).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destinations::url;

    #[test]
    fn levels_lie_where_litestream_puts_them() {
        for (address, level) in [
            ("s3://b/fleet/app", "0009"),
            ("file:///srv/app", "ltx/9"),
            ("gs://b/app", "ltx/9"),
            ("abs://me@box/app", "ltx/9"),
        ] {
            let kind = url::parse(address).unwrap().kind();
            assert_eq!(folder(kind)(Level::SNAPSHOT), level, "{address}");
        }
    }
}
