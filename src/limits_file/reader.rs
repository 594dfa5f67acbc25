//! From a text to limits, and from what is wrong to its place in the text.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::error::FileKey;
use super::{FilePlace, LimitsFile, LimitsFileError};
use crate::limit::{Limit, LimitBuilder, LimitError, Rate, Window, parse_time};
use crate::pause::PausePolicy;
use crate::settlement::Overage;

const TABLES: &str = "limits and patterns";
const FIELDS: &str =
    "rates, pad, resolution, keep, slots, timeout, burst, refill, unit, overage and pauses";
const PAUSE_FIELDS: &str = "first, strikes, within, cap and slow_start";

/// A text, and what it takes to say where something stands in it.
pub(super) struct Reader<'t> {
    text: &'t str,
    file: Option<Arc<Path>>,
    /// Where each line starts.
    lines: Vec<usize>,
}

/// A limit as it stands in the text.
struct Entry<'d, 't> {
    is_pattern: bool,
    key: &'d Spanned<DeString<'t>>,
    value: &'d DeValue<'t>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str, file: Option<Arc<Path>>) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            file,
            lines: std::iter::once(0).chain(after_breaks).collect(),
        }
    }

    pub(super) fn limits(&self) -> Result<LimitsFile, LimitsFileError> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        let document = document.get_ref();
        if let Some(first) = errors.iter().min_by_key(|error| start_of(error)) {
            return Err(self.not_toml(first, document));
        }
        self.check_tables(document)?;
        let mut lines = BTreeMap::new();
        let mut file = LimitsFile {
            limits: Vec::new(),
            places: Vec::new(),
        };
        for entry in entries(document) {
            let place = self.place(entry.key.span().start, Some(&entry));
            if let Some(line) = lines.insert(entry.key.get_ref(), place.line) {
                return Err(LimitsFileError::Twice { place, line });
            }
            file.limits.push(self.limit(&entry, &place)?);
            file.places.push(place);
        }
        Ok(file)
    }

    fn check_tables(&self, document: &DeTable<'_>) -> Result<(), LimitsFileError> {
        for (name, value) in in_order(document) {
            let place = self.place(name.span().start, None);
            let what = match &**name.get_ref() {
                "limits" => "`limits`",
                "patterns" => "`patterns`",
                field => {
                    return Err(LimitsFileError::UnknownField {
                        place,
                        field: field.to_owned(),
                        known: TABLES,
                    });
                }
            };
            if !value.is_table() {
                return Err(LimitsFileError::Value {
                    place,
                    what,
                    expected: "a table",
                    found: shown(value),
                });
            }
        }
        Ok(())
    }

    fn limit(&self, entry: &Entry<'_, '_>, place: &FilePlace) -> Result<Limit, LimitsFileError> {
        let DeValue::Table(fields) = entry.value else {
            return Err(LimitsFileError::Value {
                place: place.clone(),
                what: "a limit",
                expected: "a table of fields",
                found: shown(entry.value),
            });
        };
        let key = &**entry.key.get_ref();
        let mut builder = if entry.is_pattern {
            Limit::pattern(key)
        } else {
            Limit::new(key)
        };
        let mut places = BTreeMap::new();
        for (name, value) in in_order(fields) {
            let field = Field {
                place: self.place(name.span().start, Some(entry)),
                name: name.get_ref(),
                value,
            };
            builder = field.add_to(builder, key)?;
            let place = field.place;
            if let Some(source) = builder.take_wrong() {
                return Err(wrong(place, source));
            }
            places.insert(&**name.get_ref(), place);
        }
        builder.build().map_err(|source| {
            let field = field_of(&source).and_then(|field| places.remove(field));
            let place = field.unwrap_or_else(|| place.clone());
            match source {
                LimitError::NoRate => LimitsFileError::Empty { place },
                source => wrong(place, source),
            }
        })
    }

    fn not_toml(&self, error: &toml::de::Error, document: &DeTable<'_>) -> LimitsFileError {
        let start = start_of(error);
        let found = error.span().and_then(|span| self.text.get(span));
        let found = found.filter(|found| !found.is_empty());
        let problem = match found {
            Some(found) => format!("{}, found `{}`", error.message(), shortened(found)),
            None => error.message().to_owned(),
        };
        let place = self.place(start, self.entry_around(start, document).as_ref());
        LimitsFileError::Syntax {
            place: self.with_column(place, start),
            problem,
        }
    }

    /// For a text that goes on with bytes that are none.
    pub(super) fn ends_in_bytes(&self) -> LimitsFileError {
        let end = self.text.len();
        LimitsFileError::Syntax {
            place: self.with_column(self.place(end, None), end),
            problem: "the file is not UTF-8".to_owned(),
        }
    }

    /// The limit in which the text stops to be TOML, as far as what was read tells: the last one that begins before,
    /// unless the header of another table comes between.
    fn entry_around<'d, 'e>(
        &self,
        offset: usize,
        document: &'d DeTable<'e>,
    ) -> Option<Entry<'d, 'e>> {
        let before = |entry: &Entry<'_, '_>| entry.key.span().start <= offset;
        let entry = entries(document).into_iter().rfind(before)?;
        let start = entry.key.span().start;
        let between = self.text.get(start..=offset);
        let between = between.or_else(|| self.text.get(start..offset))?;
        let is_header = |line: &str| line.trim_start().starts_with('[');
        let has_header = between.split('\n').skip(1).any(is_header);
        (!has_header).then_some(entry)
    }

    fn place(&self, offset: usize, entry: Option<&Entry<'_, '_>>) -> FilePlace {
        FilePlace {
            file: self.file.clone(),
            line: self.lines.partition_point(|start| *start <= offset),
            column: None,
            key: entry.map(|entry| FileKey {
                key: (&**entry.key.get_ref()).into(),
                is_pattern: entry.is_pattern,
            }),
        }
    }

    fn with_column(&self, place: FilePlace, offset: usize) -> FilePlace {
        let line_at = self.lines.get(place.line - 1).copied().unwrap_or(0);
        let before = self.text.get(line_at..offset).unwrap_or("");
        let before = before.strip_prefix('\u{feff}').unwrap_or(before);
        FilePlace {
            column: Some(before.chars().count() + 1),
            ..place
        }
    }
}

/// All limits and patterns, in the order of the text.
fn entries<'d, 't>(document: &'d DeTable<'t>) -> Vec<Entry<'d, 't>> {
    let mut entries = Vec::new();
    for (table, is_pattern) in [("limits", false), ("patterns", true)] {
        let table = document
            .get(table)
            .and_then(|table| table.get_ref().as_table());
        entries.extend(table.into_iter().flatten().map(|(key, value)| Entry {
            is_pattern,
            key,
            value: value.get_ref(),
        }));
    }
    entries.sort_by_key(|entry| entry.key.span().start);
    entries
}

fn in_order<'d, 't>(table: &'d DeTable<'t>) -> Vec<(&'d Spanned<DeString<'t>>, &'d DeValue<'t>)> {
    let fields = table.iter().map(|(name, value)| (name, value.get_ref()));
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by_key(|(name, _)| name.span().start);
    fields
}

fn start_of(error: &toml::de::Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

/// A field of a limit.
struct Field<'d, 't> {
    place: FilePlace,
    name: &'d str,
    value: &'d DeValue<'t>,
}

impl Field<'_, '_> {
    fn add_to(&self, builder: LimitBuilder, key: &str) -> Result<LimitBuilder, LimitsFileError> {
        Ok(match self.name {
            "rates" => builder.rates(self.text("`rates`", "a text such as \"10/s, 300/min\"")?),
            "pad" => builder.pad(self.time("`pad`")?),
            "resolution" => builder.resolution(self.time("`resolution`")?),
            "keep" => builder.keep(self.time("`keep`")?),
            "slots" => builder.slots(self.number("`slots`")?),
            "timeout" => builder.timeout(self.time("`timeout`")?),
            "burst" => builder.burst(self.number("`burst`")?),
            "refill" => {
                let (amount, per) = self.refill()?;
                builder.refill(amount, per)
            }
            "unit" => builder.unit(self.text("`unit`", "a text such as \"tokens\"")?),
            "overage" => builder.overage(self.overage()?),
            "pauses" => builder.pauses(self.pauses()?),
            _ => return Err(self.unknown(key)),
        })
    }

    fn text(&self, what: &'static str, expected: &'static str) -> Result<&str, LimitsFileError> {
        let text = self.value.as_str();
        text.ok_or_else(|| self.unexpected(what, expected))
    }

    fn time(&self, what: &'static str) -> Result<Duration, LimitsFileError> {
        let text = self.text(what, "a time such as \"50ms\" or \"10min\"")?;
        parse_time(text).map_err(|error| self.wrong(error.into()))
    }

    fn number(&self, what: &'static str) -> Result<u64, LimitsFileError> {
        let integer = self.value.as_integer();
        let number = integer.and_then(|it| u64::from_str_radix(it.as_str(), it.radix()).ok());
        number.ok_or_else(|| self.unexpected(what, "a whole number above zero"))
    }

    fn refill(&self) -> Result<(u64, Duration), LimitsFileError> {
        let text = self.text("`refill`", "a text such as \"10/s\"")?;
        let rate: Rate = text
            .parse()
            .map_err(|error: crate::ParseRatesError| self.wrong(error.into()))?;
        match rate.window() {
            Window::Rolling(per) => Ok((rate.capacity(), per)),
            Window::Calendar(_) => Err(self.wrong(LimitError::NotForBuckets {
                what: "calendar quota",
            })),
        }
    }

    fn pauses(&self) -> Result<PausePolicy, LimitsFileError> {
        let DeValue::Table(fields) = self.value else {
            return Err(self.unexpected("`pauses`", "a table such as { first = \"30s\" }"));
        };
        let mut policy = PausePolicy::default();
        let number = |field: &Self, what| {
            let number = field.number(what)?;
            u32::try_from(number).map_err(|_| field.unexpected(what, "a smaller number"))
        };
        for (name, value) in in_order(fields) {
            let field = Field {
                place: self.place.clone(),
                name: name.get_ref(),
                value,
            };
            policy =
                match field.name {
                    "first" => policy.first(field.time("`first`")?),
                    "strikes" => policy.escalate(number(&field, "`strikes`")?, policy.within),
                    "within" => policy.escalate(policy.strikes, field.time("`within`")?),
                    "cap" => policy.cap(field.time("`cap`")?),
                    "slow_start" => {
                        let percent = number(&field, "`slow_start`")?;
                        let percent = u8::try_from(percent);
                        policy.slow_start(percent.map_err(|_| {
                            field.unexpected("`slow_start`", "a number from 1 to 100")
                        })?)
                    }
                    _ => {
                        return Err(LimitsFileError::UnknownField {
                            place: self.place.clone(),
                            field: field.name.to_owned(),
                            known: PAUSE_FIELDS,
                        });
                    }
                };
        }
        Ok(policy)
    }

    fn overage(&self) -> Result<Overage, LimitsFileError> {
        let overage = self.value.as_str().and_then(Overage::parse);
        overage.ok_or_else(|| self.unexpected("`overage`", "\"debt\", \"charge\" or \"deny\""))
    }

    fn wrong(&self, source: LimitError) -> LimitsFileError {
        wrong(self.place.clone(), source)
    }

    fn unexpected(&self, what: &'static str, expected: &'static str) -> LimitsFileError {
        LimitsFileError::Value {
            place: self.place.clone(),
            what,
            expected,
            found: shown(self.value),
        }
    }

    fn unknown(&self, key: &str) -> LimitsFileError {
        let place = self.place.clone();
        if !self.value.is_table() {
            return LimitsFileError::UnknownField {
                place,
                field: self.name.to_owned(),
                known: FIELDS,
            };
        }
        let mut key = format!("{key}.{}", self.name);
        let mut value = self.value;
        while let Some((name, inner)) = first_table(value) {
            key.push('.');
            key.push_str(name);
            value = inner;
        }
        LimitsFileError::Unquoted { place, key }
    }
}

fn first_table<'d, 't>(value: &'d DeValue<'t>) -> Option<(&'d str, &'d DeValue<'t>)> {
    let (name, inner) = value.as_table()?.iter().next()?;
    let inner = inner.get_ref();
    inner.is_table().then_some((&**name.get_ref(), inner))
}

fn wrong(place: FilePlace, source: LimitError) -> LimitsFileError {
    LimitsFileError::Limit {
        place,
        source: Box::new(source),
    }
}

/// The field to which an error belongs that shows only when the limit is whole.
fn field_of(error: &LimitError) -> Option<&'static str> {
    Some(match error {
        LimitError::Unit { .. } => "unit",
        LimitError::Pad { .. } => "pad",
        LimitError::Resolution { .. } => "resolution",
        LimitError::Keep { .. }
        | LimitError::NotForSlots { what: "history" }
        | LimitError::NotForBuckets { what: "history" } => "keep",
        LimitError::Slots { .. } => "slots",
        LimitError::Timeout { .. } | LimitError::OnlyForSlots => "timeout",
        LimitError::Capacity { .. } => "burst",
        LimitError::SlowRefill { .. } => "refill",
        LimitError::SameWindow { .. }
        | LimitError::TooManyRates { .. }
        | LimitError::NotForSlots { what: "rate" }
        | LimitError::NotForBuckets { what: "rate" } => "rates",
        LimitError::NotForSlots { what } | LimitError::NotForBuckets { what } => what,
        _ => return None,
    })
}

/// A value as it stands in the text, or nearly.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{}\"", shortened(text)),
        DeValue::Integer(number) => shortened(&number.to_string()),
        DeValue::Float(number) => shortened(number.as_str()),
        DeValue::Boolean(it) => it.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// So much of it that a message stays a line.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    let start: String = text.chars().take(LONGEST).collect();
    let more = if start.len() < text.len() { ".." } else { "" };
    format!("{}{more}", start.escape_debug())
}
