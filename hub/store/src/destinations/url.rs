//! A place as one line of text, for commands that work without a configuration: Litestream's forms.
//!
//! ```text
//! file:///PATH
//! s3://BUCKET/PREFIX?endpoint=URL&region=NAME
//! gs://BUCKET/PREFIX?endpoint=URL          (or gcs://, as the type is called)
//! abs://ACCOUNT@CONTAINER/PREFIX?endpoint=URL
//! ```
//! Credentials never stand in it: they come from the environment, as the clouds' own tools find them.

use super::config::{AbsConfig, DestinationConfig, FileConfig, GcsConfig, S3Config};
use std::path::PathBuf;

/// The forms, for messages.
pub const FORMS: &str = "file:///PATH, s3://BUCKET/PREFIX?endpoint=URL&region=NAME, gs://BUCKET/PREFIX or abs://ACCOUNT@CONTAINER/PREFIX";

/// The place that `url` names. The error is for people and says what to write.
pub fn parse(url: &str) -> Result<DestinationConfig, String> {
    read(url).map_err(|why| format!("{url}: {why}; write {FORMS}"))
}

fn read(url: &str) -> Result<DestinationConfig, String> {
    let (scheme, rest) = url.split_once("://").ok_or("no scheme")?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    if scheme == "file" {
        return match (place.starts_with('/'), query) {
            (false, _) => Err("the path is not absolute".to_owned()),
            (true, "") => Ok(DestinationConfig::File(FileConfig { path: PathBuf::from(place) })),
            (true, _) => Err("a folder takes no options".to_owned()),
        };
    }
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let (account, bucket) = match bucket.rsplit_once('@') {
        Some(("", _)) => return Err("no account".to_owned()),
        Some((account, _)) if account.contains(':') => {
            return Err("credentials do not belong into an address".to_owned());
        }
        Some((account, bucket)) => (Some(account.to_owned()), bucket),
        None => (None, bucket),
    };
    if bucket.is_empty() {
        return Err("no bucket".to_owned());
    }
    let (bucket, prefix) = (bucket.to_owned(), prefix.trim_matches('/').to_owned());
    let (mut endpoint, mut region) = (None, None);
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("endpoint", value)) => endpoint = Some(value.to_owned()),
            Some(("region", value)) if scheme == "s3" => region = Some(value.to_owned()),
            _ => return Err(format!("{option:?} is no option")),
        }
    }
    match (scheme, account) {
        ("s3", None) => {
            Ok(DestinationConfig::S3(S3Config { bucket, prefix, endpoint, region, ..S3Config::default() }))
        }
        ("gs" | "gcs", None) => {
            Ok(DestinationConfig::Gcs(GcsConfig { bucket, prefix, endpoint, ..GcsConfig::default() }))
        }
        ("abs", account_name) => Ok(DestinationConfig::Abs(AbsConfig {
            bucket,
            prefix,
            endpoint,
            account_name,
            ..AbsConfig::default()
        })),
        ("s3" | "gs" | "gcs", Some(_)) => Err("credentials do not belong into an address".to_owned()),
        _ => Err(format!("{scheme:?} is no kind of place")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_place_has_a_form() {
        let Ok(DestinationConfig::S3(s3)) = parse("s3://b/fleet/app?endpoint=http://127.0.0.1:9&region=r")
        else {
            panic!("not S3")
        };
        assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("b", "fleet/app"));
        assert_eq!((s3.endpoint.as_deref(), s3.region.as_deref()), (Some("http://127.0.0.1:9"), Some("r")));
        let Ok(DestinationConfig::Abs(abs)) = parse("abs://me@box/fleet/") else { panic!("not Azure") };
        assert_eq!((abs.account_name.as_deref(), abs.bucket.as_str()), (Some("me"), "box"));
        assert_eq!(abs.prefix, "fleet");
        for url in ["gs://b", "gcs://b/"] {
            let Ok(DestinationConfig::Gcs(gcs)) = parse(url) else { panic!("not Google's") };
            assert_eq!((gcs.bucket.as_str(), gcs.prefix.as_str()), ("b", ""));
        }
        assert!(matches!(parse("file:///srv/app"), Ok(DestinationConfig::File(_))));
    }

    #[test]
    fn mistakes_are_named() {
        for (url, why) in [
            ("file://srv/app", "not absolute"),
            ("file:///srv?x=1", "takes no options"),
            ("/srv/app", "no scheme"),
            ("s3:///app", "no bucket"),
            ("s3://b/p?regoin=x", "is no option"),
            ("gs://b/p?region=x", "is no option"),
            ("s3://key:secret@b/p", "credentials do not belong"),
            ("s3://key@b/p", "credentials do not belong"),
            ("abs://@b/p", "no account"),
            ("ftp://b/p", "is no kind of place"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(why) && error.contains("file:///PATH"), "{url}: {error}");
        }
    }
}
