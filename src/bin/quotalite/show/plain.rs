//! What stands in a file steers no terminal: names may be anything there, also what a terminal takes for a command.

use std::borrow::Cow;
use std::io::{self, Write};

/// Whether a terminal does something else than to show it, or shows what follows somewhere else.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text of the file in one line.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains(steers) {
        Cow::Owned(text.replace(steers, "?"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A document of JSON, in which only texts can have such characters, with these escaped.
pub(crate) fn escaped(json: String) -> String {
    if !json.contains(steers) {
        return json;
    }
    let each = json.chars().map(|character| {
        if steers(character) {
            format!("\\u{:04x}", u32::from(character))
        } else {
            character.to_string()
        }
    });
    each.collect()
}

/// Takes what is shown on a terminal, and lets nothing through that steers it but colours and the ends of lines.
#[derive(Debug)]
pub(crate) struct Plain<W>(pub(crate) W);

impl<W: Write> Write for Plain<W> {
    /// Takes whole characters and whole colours, as formatting writes them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let mut rest = &*text;
        while let Some(at) = rest.find(steers) {
            let (before, from) = rest.split_at(at);
            self.0.write_all(before.as_bytes())?;
            let (first, after) = match style_at(from) {
                Some(end) => from.split_at(end),
                None if from.starts_with('\n') => from.split_at(1),
                None => {
                    let mut after = from.chars();
                    after.next();
                    ("?", after.as_str())
                }
            };
            self.0.write_all(first.as_bytes())?;
            rest = after;
        }
        self.0.write_all(rest.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Where the colour ends that a text begins with, if it does.
fn style_at(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|character: char| !character.is_ascii_digit() && character != ';')?;
    parameters[end..].starts_with('m').then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_steered_by_what_it_is_shown() {
        for (text, shown) in [
            ("openai:requests", "openai:requests"),
            ("Schlüssel 鍵", "Schlüssel 鍵"),
            ("a\u{1b}]0;title\u{7}b", "a?]0;title?b"),
            ("\u{1b}[2Jgone\r", "?[2Jgone?"),
            ("\u{9b}2J\u{7f}\t", "?2J??"),
            ("\u{202e}mpr", "?mpr"),
            ("\u{1b}[", "?["),
            ("\u{1b}", "?"),
        ] {
            assert_eq!(plain(text), shown);
            let mut out = Vec::new();
            write!(Plain(&mut out), "{text}").unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), shown);
            let json = escaped(serde_json::to_string(text).unwrap());
            assert!(!json.contains(steers), "{json:?}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn colours_and_lines_stay() {
        let text = "\u{1b}[1m\u{1b}[38;5;9mbold\u{1b}[0m\nnext\n";
        let mut out = Vec::new();
        write!(Plain(&mut out), "{text}").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), text);
        assert_eq!(plain("two\nlines"), "two?lines");
    }
}
