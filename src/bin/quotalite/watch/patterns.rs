//! Which definitions concern whom.

/// A piece of a pattern: `*` is one or more characters, which is any one and then as many as there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    One(char),
    Any,
    More,
}

fn pieces(pattern: &str) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(pattern.len());
    for letter in pattern.chars() {
        match letter {
            '*' => pieces.extend([Piece::Any, Piece::More]),
            letter => pieces.push(Piece::One(letter)),
        }
    }
    pieces
}

/// Whether there can be a key that matches both: texts without a `*` match themselves only.
pub(super) fn share_a_key(one: &str, other: &str) -> bool {
    let (one, other) = (pieces(one), pieces(other));
    // Whether what is left of `one` and what is left of `other` have a text in common, from their ends on: `below` is that with
    // a piece less of `one`.
    let mut below = vec![false; other.len() + 1];
    for at in (0..=one.len()).rev() {
        let mut row = vec![false; other.len() + 1];
        for beside in (0..=other.len()).rev() {
            row[beside] = match (one.get(at), other.get(beside)) {
                (None, None) => true,
                (Some(Piece::More), None) => below[beside],
                (Some(Piece::More), Some(_)) => below[beside] || row[beside + 1],
                (None, Some(Piece::More)) => row[beside + 1],
                (Some(_), Some(Piece::More)) => row[beside + 1] || below[beside],
                (Some(Piece::One(one)), Some(Piece::One(other))) if one != other => false,
                (Some(_), Some(_)) => below[beside + 1],
                (None, Some(_)) | (Some(_), None) => false,
            };
        }
        below = row;
    }
    below[0]
}

#[cfg(test)]
mod tests {
    use super::share_a_key;

    #[test]
    fn patterns_share_a_key_if_one_text_matches_both() {
        let cases = [
            ("*", "x", true),
            ("*", "tenant:*", true),
            ("x", "x", true),
            ("x", "y", false),
            ("x", "xy", false),
            ("a*", "a", false),
            ("tenant:a*", "tenant:*", true),
            ("tenant:a*", "tenant:b*", false),
            ("tenant:a*", "tenant:*:tokens", true),
            ("tenant:a*", "*", true),
            ("tenant:a*", "user:*", false),
            ("a*", "*b", true),
            ("ab*", "*b", true),
            ("ab*", "a*b", true),
            ("a*c*e", "*b*d*", true),
            ("*a", "*b", false),
            ("é*", "*", true),
            ("é", "*", true),
            ("*é", "é*", true),
            ("ab", "*a*", false),
            ("bab", "*a*", true),
            ("", "*", false),
            ("**", "x", false),
            ("**", "xy", true),
        ];
        for (one, other, share) in cases {
            assert_eq!(share_a_key(one, other), share, "{one} {other}");
            assert_eq!(share_a_key(other, one), share, "{other} {one}");
        }
    }
}
