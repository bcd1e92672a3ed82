//! A place where Litestream keeps one database, as a source of files: `file:///PATH` or
//! `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`, with the credentials of the hub's environment.

use super::ImportError;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, DestinationName, Level};
use walhub_store::destinations::config::{DestinationConfig, FileConfig, S3Config};
use walhub_store::destinations::error::{Context, Operation};
use walhub_store::destinations::object::{self, ObjectPath};
use walhub_store::destinations::{DestinationError, DynDestination, Fault, FileKey, Listed};
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

type Parsed = (DestinationConfig, fn(Level) -> String);

fn parse(url: &str) -> Result<Parsed, String> {
    let wrong = |why: &str| {
        Err(format!("{url}: {why}; write file:///PATH or s3://BUCKET/PREFIX?endpoint=URL&region=NAME"))
    };
    let Some((scheme, rest)) = url.split_once("://") else { return wrong("no scheme") };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    match scheme {
        "file" if !place.starts_with('/') => wrong("the path is not absolute"),
        "file" if !query.is_empty() => wrong("a folder takes no options"),
        "file" => Ok((DestinationConfig::File(FileConfig { path: PathBuf::from(place) }), name::fs_dir)),
        "s3" => {
            let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
            let mut config = S3Config {
                bucket: bucket.to_owned(),
                prefix: prefix.trim_matches('/').to_owned(),
                ..S3Config::default()
            };
            if bucket.is_empty() {
                return wrong("no bucket");
            }
            for option in query.split('&').filter(|option| !option.is_empty()) {
                match option.split_once('=') {
                    Some(("endpoint", value)) => config.endpoint = Some(value.to_owned()),
                    Some(("region", value)) => config.region = Some(value.to_owned()),
                    _ => return wrong(&format!("{option:?} is no option")),
                }
            }
            Ok((DestinationConfig::S3(config), name::s3_dir))
        }
        _ => wrong("only folders and S3 buckets can be read"),
    }
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
    fn addresses_are_read_and_mistakes_are_named() {
        let (config, folder) = parse("s3://b/fleet/app?endpoint=http://127.0.0.1:9&region=r").unwrap();
        let DestinationConfig::S3(s3) = config else { panic!("not S3") };
        assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("b", "fleet/app"));
        assert_eq!((s3.endpoint.as_deref(), s3.region.as_deref()), (Some("http://127.0.0.1:9"), Some("r")));
        assert_eq!(folder(Level::SNAPSHOT), "0009");
        assert!(matches!(parse("file:///srv/app"), Ok((DestinationConfig::File(_), _))));
        for (url, why) in [
            ("file://srv/app", "not absolute"),
            ("/srv/app", "no scheme"),
            ("s3:///app", "no bucket"),
            ("s3://b/p?regoin=x", "is no option"),
            ("gs://b/p", "only folders and S3"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(why) && error.contains("file:///PATH"), "{url}: {error}");
        }
    }
}
