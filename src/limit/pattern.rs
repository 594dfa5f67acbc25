//! Patterns: one definition for many keys.

use std::cmp::Ordering;

/// A text in which a `*` stands for one or more characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pattern<'p>(pub(crate) &'p str);

impl Pattern<'_> {
    /// Whether it is one.
    pub(super) fn is_valid(self) -> bool {
        self.0.contains('*') && !self.0.contains("**")
    }

    pub(crate) fn matches(self, key: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| key.strip_prefix(first)) else {
            return false;
        };
        let mut parts = parts.peekable();
        while let Some(part) = parts.next() {
            // The star before this part takes a character at least.
            let Some(first) = rest.chars().next() else {
                return false;
            };
            let after_one = &rest[first.len_utf8()..];
            if parts.peek().is_none() {
                return after_one.ends_with(part);
            }
            // The earliest place leaves the most to the parts that follow.
            let Some(at) = after_one.find(part) else {
                return false;
            };
            rest = &after_one[at + part.len()..];
        }
        rest.is_empty()
    }

    /// The more specific one of two that match the same key is the greater. No two are equal.
    pub(crate) fn cmp_specific(self, other: Self) -> Ordering {
        let literal = |pattern: Self| {
            let text = pattern.0;
            let characters = text.chars().filter(|c| *c != '*').count();
            let before = text
                .find('*')
                .map_or(characters, |at| text[..at].chars().count());
            (characters, before)
        };
        literal(self)
            .cmp(&literal(other))
            .then_with(|| other.0.cmp(self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_one_or_more_characters() {
        let cases = [
            ("tenant:*:tokens", "tenant:42:tokens", true),
            ("tenant:*:tokens", "tenant:a:b:tokens", true),
            ("tenant:*:tokens", "tenant::tokens", false),
            ("tenant:*:tokens", "tenant:tokens", false),
            ("tenant:*:tokens", "tenant:42:tokens:x", false),
            ("tenant:*:tokens", "tenant:42:tokens:43:tokens", true),
            ("*", "x", true),
            ("*", "", false),
            ("a*", "a", false),
            ("a*", "aé", true),
            ("*a", "aa", true),
            ("*a*b", "xaab", true),
            ("*a*b", "xab", false),
            ("*a*a", "aaa", false),
            ("*a*a", "aaaa", true),
        ];
        for (pattern, key, matches) in cases {
            assert_eq!(Pattern(pattern).matches(key), matches, "{pattern} {key}");
        }
    }

    #[test]
    fn the_most_specific_pattern_is_the_greatest() {
        let mut patterns = ["*", "t:*", "t:*:b", "t:a*", "*:a:b", "t:a:*", "t:*b:*"];
        patterns.sort_by(|a, b| Pattern(a).cmp_specific(Pattern(b)));
        assert_eq!(
            patterns,
            ["*", "t:*", "t:a*", "*:a:b", "t:*b:*", "t:*:b", "t:a:*"]
        );
    }

    /// Tries every length for every star.
    fn matches_by_trial(pattern: &[char], key: &[char]) -> bool {
        match pattern.split_first() {
            None => key.is_empty(),
            Some(('*', rest)) => (1..=key.len()).any(|n| matches_by_trial(rest, &key[n..])),
            Some((c, rest)) => key.first() == Some(c) && matches_by_trial(rest, &key[1..]),
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_trial(pattern in "[ab*]{1,6}", key in "[ab]{0,9}") {
            prop_assume!(Pattern(&pattern).is_valid());
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                Pattern(&pattern).matches(&key),
                matches_by_trial(&chars(&pattern), &chars(&key))
            );
        }
    }
}
