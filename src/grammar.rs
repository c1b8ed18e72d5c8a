//! Whether a text is one of a grammar.

use regex_lite::Regex;

/// Whether a whole text matches a pattern. One that is no pattern matches nothing.
pub fn matches(pattern: &str, text: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|pattern| pattern.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_of_the_whole_text() {
        for (text, expected) in
            [("a", true), ("b", true), ("ab", false), ("a\n", false), ("", false)]
        {
            assert_eq!(matches("a|b", text), expected, "{text:?}");
        }
        assert!(!matches("(", "("));
    }
}
