//! The errors of registry exports.

use std::fmt;

/// A place in the text. Lines and columns count from 1, and columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

/// Why bytes are not a registry export, and the place of the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegError {
    pub place: Place,
    pub wrong: Wrong,
}

impl fmt::Display for RegError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        write!(f, "{line}:{column}: {}", self.wrong)
    }
}

impl std::error::Error for RegError {}

/// The problem with a registry export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error("more than 16 MiB; export only the branches with the settings")]
    TooLong,
    #[error(
        "UTF-16 in big-endian order; save it as regedit does, in little-endian order, or as UTF-8"
    )]
    BigEndian,
    #[error("neither UTF-16LE with a byte order mark nor UTF-8 from here on")]
    Encoding,
    #[error("the first line must be \"Windows Registry Editor Version 5.00\" or \"REGEDIT4\"")]
    Header,
    #[error("a key must be written as [HKEY_LOCAL_MACHINE\\...] on one line")]
    Key,
    #[error("expected [a key], \"a value\"= or a comment after ;")]
    Line,
    #[error("a value before any key, or below one that is deleted; write its [key] first")]
    ValueWithoutKey,
    #[error("expected = after the value's name")]
    Equals,
    #[error("expected \"text\", dword:, hex:, hex(type): or -")]
    Data,
    #[error("a string that begins here does not end; close its quotes")]
    OpenString,
    #[error("dword: takes one to eight hexadecimal digits; 10000 is dword:00002710")]
    Dword,
    #[error("hex: takes bytes of two hexadecimal digits with commas between them")]
    Hex,
    #[error("unexpected text after the end of the entry")]
    Trailing,
}

impl Wrong {
    pub(super) const fn at(self, place: Place) -> RegError {
        RegError { place, wrong: self }
    }
}
