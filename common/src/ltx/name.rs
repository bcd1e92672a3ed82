//! Names of LTX files and of the folders they lie in, as Litestream 0.5 spells them.

use crate::{Level, TxidRange};

/// `<min:016x>-<max:016x>.ltx`.
pub fn file_name(range: TxidRange) -> String {
    format!("{range}.ltx")
}

/// The range a name stands for; `None` for any name that Litestream's listings would ignore.
pub fn parse(name: &str) -> Option<TxidRange> {
    let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
    TxidRange::from_raw(hex16(min)?, hex16(max)?)
}

fn hex16(text: &str) -> Option<u64> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 16 || !text.bytes().all(lower_hex) {
        return None;
    }
    u64::from_str_radix(text, 16).ok()
}

/// Folder of a level on file destinations (also GCS and Azure): `ltx/<level>`.
pub fn fs_dir(level: Level) -> String {
    format!("ltx/{level}")
}

/// Folder of a level on S3: `<level %04x>`.
pub fn s3_dir(level: Level) -> String {
    format!("{:04x}", level.get())
}
