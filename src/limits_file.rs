//! Limits that an operator writes in one file.

mod error;
mod reader;

use std::fs;
use std::path::Path;
use std::sync::Arc;

pub use self::error::{FilePlace, LimitsFileError};
use self::reader::Reader;
use crate::definition::{Definition, OnConflict};
use crate::error::Error;
use crate::limit::Limit;
use crate::limiter::Limiter;

/// The limits that a TOML file defines, in the order in which it does. All of them are valid;
/// [`Limiter::apply`] puts them in force, all or none. Needs the feature `file`.
///
/// Each limit is a table: `[limits."key"]`, or `[patterns."key with a *"]` for a [pattern](Limit::pattern). Its fields say
/// what the methods of [`LimitBuilder`](crate::LimitBuilder) and [`PausePolicy`](crate::PausePolicy) say that have the same
/// names:
///
/// | field | for | example |
/// |---|---|---|
/// | `rates` | rates | `"10/s, 300/min"`, `"90000 tokens/min"` |
/// | `pad` | rates | `"50ms"` |
/// | `resolution` | rates | `"1min"` |
/// | `keep` | rates | `"7d"` |
/// | `slots` | slots | `8` |
/// | `timeout` | slots | `"10min"` |
/// | `burst` | a bucket | `100` |
/// | `refill` | a bucket | `"10/s"` |
/// | `unit` | all | `"tokens"` |
/// | `overage` | rates, a bucket | `"debt"` (the default), `"charge"` or `"deny"` |
/// | `pauses` | all | `{ first = "30s", strikes = 3, within = "5min", cap = "15min", slow_start = 50 }` |
///
/// Times are whole numbers of `ms`, `s`, `min`, `h` or `d`.
///
/// ```
/// use quotalite::{Definition, Limiter, LimitsFile, OnConflict};
///
/// let file = LimitsFile::parse(r#"
///     [limits."openai:tokens"]
///     rates = "90000 tokens/min"
///     overage = "charge"
///
///     [limits.gpu]
///     slots = 8
///     timeout = "10min"
///
///     [patterns."tenant:*:daily-tokens"]
///     rates = "100000 tokens/d"
/// "#)?;
///
/// let limiter = Limiter::in_memory()?;
/// for (limit, definition) in limiter.apply(&file, OnConflict::Replace)? {
///     println!("{limit}: {definition:?}");
///     assert_eq!(definition, Definition::Created);
/// }
/// assert!(limiter.try_acquire(("tenant:42:daily-tokens", 1_000))?.is_granted());
/// # Ok::<(), quotalite::LimitsFileError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LimitsFile {
    limits: Vec<Limit>,
    /// Where each of them stands.
    places: Vec<FilePlace>,
}

impl LimitsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`LimitsFileError::Read`] if that fails, and as [`parse`](Self::parse). All name the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, LimitsFileError> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| LimitsFileError::Read {
            file: path.to_owned(),
            source,
        })?;
        let file = Some(Arc::from(path));
        match str::from_utf8(&bytes) {
            Ok(text) => Reader::new(text, file).limits(),
            Err(error) => {
                let (valid, _) = bytes.split_at(error.valid_up_to());
                Err(Reader::new(&String::from_utf8_lossy(valid), file).ends_in_bytes())
            }
        }
    }

    /// Reads a text.
    ///
    /// # Errors
    /// A [`LimitsFileError`] that names the line, and the key of the limit where it is about one; the first thing, if
    /// several are wrong.
    pub fn parse(text: &str) -> Result<Self, LimitsFileError> {
        Reader::new(text, None).limits()
    }

    /// The limits and patterns, in the order of the file.
    #[must_use]
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// Where a limit or a pattern stands, by its key.
    #[must_use]
    pub fn place_of(&self, key: &str) -> Option<&FilePlace> {
        let at = self.limits.iter().position(|limit| limit.key() == key)?;
        self.places.get(at)
    }

    fn refused(&self, error: Error) -> LimitsFileError {
        let key = match &error {
            Error::Conflict { given, .. } | Error::Finer { given, .. } => given.key(),
            Error::OtherKind { key, .. } => key,
            _ => return error.into(),
        };
        match self.place_of(key).cloned() {
            Some(place) => LimitsFileError::Refused {
                place,
                source: Box::new(error),
            },
            None => error.into(),
        }
    }
}

impl Limiter {
    /// Defines the limits of a file, all of them or none, in one transaction, and says what to do where another
    /// definition stands. Returns each limit of the file with what came of it. Limits that the file does not name
    /// stay as they are. Needs the feature `file`.
    ///
    /// ```
    /// use quotalite::{Definition, Limit, Limiter, LimitsFile, OnConflict};
    ///
    /// let limiter = Limiter::in_memory()?;
    /// limiter.define(Limit::new("api").per_second(10))?;
    /// let file = LimitsFile::parse("limits.api.rates = '20/s'")?;
    ///
    /// let error = limiter.apply(&file, OnConflict::Fail).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "line 1: limit is defined as `api: 10/s`, not as `api: 20/s`, in :memory:"
    /// );
    /// let outcome = limiter.apply(&file, OnConflict::Replace)?;
    /// assert!(matches!(outcome[0].1, Definition::Replaced(_)));
    /// # Ok::<(), quotalite::LimitsFileError>(())
    /// ```
    ///
    /// # Errors
    /// [`LimitsFileError::Refused`] with the place of the limit if what is defined stands in its way, and
    /// [`LimitsFileError::Limiter`] for whatever can happen to the database. Nothing is defined then, and what stood
    /// there stands.
    pub fn apply<'f>(
        &self,
        file: &'f LimitsFile,
        conflict: OnConflict,
    ) -> Result<Vec<(&'f Limit, Definition)>, LimitsFileError> {
        let definitions = self.define_all(&file.limits, conflict);
        let definitions = definitions.map_err(|error| file.refused(error))?;
        Ok(file.limits.iter().zip(definitions).collect())
    }
}
