//! A place where Litestream keeps one database, as a source of files: an address that [`url`] reads, with the credentials of
//! the hub's environment.

use super::ImportError;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, DestinationName, Level};
use walhub_store::destinations::config::DestinationConfig;
use walhub_store::destinations::error::{Context, Operation};
use walhub_store::destinations::object::{self, ObjectPath};
use walhub_store::destinations::{DestinationError, DynDestination, Fault, FileKey, Listed, url};
use walhub_store::restore::{Source, SourceName};

/// What errors call the place.
const NAME: &str = "import";

/// See the module doc.
#[derive(Debug)]
pub(super) struct LitestreamSource {
    place: DynDestination,
    folder: fn(Level) -> String,
}

impl LitestreamSource {
    pub(super) async fn open(url: &str) -> Result<Self, ImportError> {
        let (config, folder) = parse(url).map_err(ImportError::Url)?;
        let name = DestinationName::new(NAME).expect("BUG: a good name");
        Ok(Self { place: config.build(name).await?, folder })
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

/// A place, and where a level of a database lies there.
type Parsed = (DestinationConfig, fn(Level) -> String);

fn parse(url: &str) -> Result<Parsed, String> {
    let config = url::parse(url)?;
    let folder = match config {
        DestinationConfig::S3(_) => name::s3_dir,
        _ => name::fs_dir,
    };
    Ok((config, folder))
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
        let mut files = Vec::new();
        for level in Level::all() {
            files.extend(self.level(level, cancel).await?);
        }
        Ok(files)
    }

    async fn read_start(
        &self,
        key: &FileKey,
        length: usize,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let path = self.path(key.level, &name::file_name(key.range))?;
        let start = self.place.open_object(&path, 0..length as u64, cancel).await?;
        object::collect(start, length).await
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

    #[test]
    fn levels_lie_where_litestream_puts_them() {
        let (_, folder) = parse("s3://b/fleet/app").unwrap();
        assert_eq!(folder(Level::SNAPSHOT), "0009");
        for url in ["file:///srv/app", "gs://b/app", "abs://me@box/app"] {
            let (_, folder) = parse(url).unwrap();
            assert_eq!(folder(Level::SNAPSHOT), "ltx/9");
        }
    }
}
