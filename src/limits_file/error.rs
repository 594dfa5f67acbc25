//! What is wrong with a file of limits, and where.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Error;
use crate::limit::LimitError;

/// Why a [`LimitsFile`](crate::LimitsFile) was not read or not applied: the first thing that is wrong with it. Nothing
/// was defined or changed then.
///
/// ```
/// use quotalite::LimitsFile;
///
/// let text = "[limits.api]\npad = \"50ms\"\nrates = \"10/s, 300/fortnight\"";
/// let error = LimitsFile::parse(text).unwrap_err();
/// assert_eq!(error.place().unwrap().line(), 3);
/// assert_eq!(
///     error.to_string(),
///     "line 3: limit `api`: `10/s, 300/fortnight` is wrong at byte 10: \
///      expected a window: ms, s, min, h or d, found `fortnight`"
/// );
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsFileError {
    /// The file could not be read.
    #[error("{}: the limits cannot be read: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The text is not TOML; a table or a field that stands there twice is not, either.
    #[error("{place}: {problem}")]
    Syntax {
        /// Where it stops to be.
        place: FilePlace,
        /// What was expected there.
        problem: String,
    },
    /// The file has a table, or a limit a field, that means nothing.
    #[error("{place}: there is no `{}` here, only {known}", .field.escape_debug())]
    UnknownField {
        /// Where it stands.
        place: FilePlace,
        /// Its name.
        field: String,
        /// Those that there are.
        known: &'static str,
    },
    /// A key with dots stands without quotes, which makes TOML take it for tables in tables.
    #[error("{place}: a key with dots stands in quotes: \"{}\"", .key.escape_debug())]
    Unquoted {
        /// Where it stands.
        place: FilePlace,
        /// The key that is meant.
        key: String,
    },
    /// A value is not what belongs there.
    #[error("{place}: {what} is {expected}, not {found}")]
    Value {
        /// Where it stands.
        place: FilePlace,
        /// What it is the value of.
        what: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The same key is defined as a limit and as a pattern.
    #[error("{place}: the key is defined in line {line} already")]
    Twice {
        /// The later place.
        place: FilePlace,
        /// The line of the other one.
        line: usize,
    },
    /// A limit has nothing to take.
    #[error("{place}: it needs `rates`, `slots`, or `burst` and `refill`")]
    Empty {
        /// Where it stands.
        place: FilePlace,
    },
    /// The definition of a limit is wrong.
    #[error("{place}: {source}")]
    Limit {
        /// Where it goes wrong.
        place: FilePlace,
        /// What is wrong.
        source: Box<LimitError>,
    },
    /// What is defined already stands in the way of a limit: [`Error::Conflict`],
    /// [`Error::OtherKind`] or [`Error::Finer`].
    #[error("{}: {source}", .place.without_key())]
    Refused {
        /// Where the limit stands in the file of limits.
        place: FilePlace,
        /// What stands in the way.
        source: Box<Error>,
    },
    /// The limits could not be applied, for a reason that has nothing to do with one of them.
    #[error(transparent)]
    Limiter(#[from] Error),
}

impl LimitsFileError {
    /// Where it went wrong, if that is a place in the text.
    #[must_use]
    pub const fn place(&self) -> Option<&FilePlace> {
        match self {
            Self::Read { .. } | Self::Limiter(_) => None,
            Self::Syntax { place, .. }
            | Self::UnknownField { place, .. }
            | Self::Unquoted { place, .. }
            | Self::Value { place, .. }
            | Self::Twice { place, .. }
            | Self::Empty { place }
            | Self::Limit { place, .. }
            | Self::Refused { place, .. } => Some(place),
        }
    }
}

/// A place in a file of limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlace {
    pub(super) file: Option<Arc<Path>>,
    pub(super) line: usize,
    pub(super) column: Option<usize>,
    pub(super) key: Option<FileKey>,
}

/// The key of a limit, or a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileKey {
    pub(super) key: Arc<str>,
    pub(super) is_pattern: bool,
}

impl FilePlace {
    /// The file, if the text was read from one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The line, from 1 on.
    #[must_use]
    pub const fn line(&self) -> usize {
        self.line
    }

    /// The character in the line, from 1 on, where the text is not TOML.
    #[must_use]
    pub const fn column(&self) -> Option<usize> {
        self.column
    }

    /// The key of the limit, or the pattern, that the place is in.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_ref().map(|key| &*key.key)
    }

    /// For errors that name the limit themselves.
    fn without_key(&self) -> Self {
        Self {
            key: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for FilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line;
        match (&self.file, self.column) {
            (Some(file), Some(column)) => write!(f, "{}:{line}:{column}", file.display())?,
            (Some(file), None) => write!(f, "{}:{line}", file.display())?,
            (None, Some(column)) => write!(f, "line {line}, column {column}")?,
            (None, None) => write!(f, "line {line}")?,
        }
        if let Some(FileKey { key, is_pattern }) = &self.key {
            let what = if *is_pattern { "pattern" } else { "limit" };
            write!(f, ": {what} `{}`", key.escape_debug())?;
        }
        Ok(())
    }
}
