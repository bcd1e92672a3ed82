//! Sections that agent and hub have in common.

use super::{Section, value};
use crate::telemetry::LogFormat;
use crate::tls::{Role, TlsMaterial, TlsPaths};
use std::fs::File;
use std::path::PathBuf;

/// `log: {level, format}`: a filter and how lines look.
pub fn log(mut section: Section<'_>) -> (String, LogFormat) {
    let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level.to_owned()));
    let level = section.or("level", "info".to_owned(), value::one_of(&levels));
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = section.or("format", LogFormat::Text, value::one_of(&formats));
    section.finish();
    (level, format)
}

/// `tls: {ca, cert, key}`. The files must be readable and the certificate one of `role`; `how` says how to get one, such
/// as "`hubctl cert issue --agent NAME`". With `None` the files are not looked at.
pub fn tls(mut section: Section<'_>, check: Option<(Role, &str)>) -> Option<TlsPaths> {
    let mut readable = true;
    let mut file = |section: &mut Section<'_>, key| {
        let path: PathBuf = section.required(key, value::path)?;
        if let Some((_, how)) = check
            && let Err(e) = File::open(&path)
        {
            readable = false;
            let make = format!("make it with `hubctl ca init` and {how}, or correct the path");
            section.fault_at(key, format!("{}: cannot be read: {e}; {make}", path.display()));
        }
        Some(path)
    };
    let (ca, cert, key) = (file(&mut section, "ca"), file(&mut section, "cert"), file(&mut section, "key"));
    let paths = TlsPaths { ca: ca?, cert: cert?, key: key? };
    if let Some((role, how)) = check
        && readable
        && let Err(reason) = of_role(&paths, role, how)
    {
        section.fault_at("cert", reason);
    }
    section.finish();
    Some(paths)
}

fn of_role(paths: &TlsPaths, role: Role, how: &str) -> Result<(), String> {
    let material = TlsMaterial::load(paths.clone()).map_err(|e| e.to_string())?;
    match material.identity() {
        Ok(identity) if identity.role == role => Ok(()),
        Ok(identity) => {
            Err(format!("the certificate is {identity}'s, and not of role {role}; {how} makes one"))
        }
        Err(e) => Err(e.to_string()),
    }
}
