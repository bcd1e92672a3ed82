//! What SQLite has in a cell, and the rows of one statement.

use rusqlite::types::ValueRef;
use std::fmt;

/// What SQLite has in a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT; what is not UTF-8 in it is replaced.
    Text(String),
    /// BLOB.
    Blob(Vec<u8>),
}

/// Rows of one statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Names, as the statement gives them.
    pub columns: Vec<String>,
    /// As many cells in each as there are columns.
    pub rows: Vec<Vec<Cell>>,
    /// There were more.
    pub truncated: bool,
}

/// Memory that a value takes as a cell.
pub(super) fn bytes(value: &ValueRef<'_>) -> usize {
    let heap = match value {
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => 0,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
    };
    size_of::<Cell>() + heap
}

impl From<ValueRef<'_>> for Cell {
    fn from(value: ValueRef<'_>) -> Cell {
        match value {
            ValueRef::Null => Cell::Null,
            ValueRef::Integer(number) => Cell::Integer(number),
            ValueRef::Real(number) => Cell::Real(number),
            ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
            ValueRef::Blob(bytes) => Cell::Blob(bytes.to_vec()),
        }
    }
}

impl fmt::Display for Cell {
    /// `NULL`, the shortest decimal that is the number (a REAL with a point or an exponent), the text itself, hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Null => f.write_str("NULL"),
            Cell::Integer(number) => write!(f, "{number}"),
            Cell::Real(number) => write!(f, "{number:?}"),
            Cell::Text(text) => f.write_str(text),
            Cell::Blob(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}
