//! Values that the log never shows.

use std::fmt;

/// A value of which `Debug` shows nothing: a password, a token, a search term.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Hidden<T>(pub T);

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_value() {
        let hidden = Hidden(("hunter2", vec![7]));
        assert_eq!(format!("{hidden:?} {hidden:#?}").matches("Hidden(..)").count(), 2);
        assert!(!format!("{hidden:?} {hidden:#?}").contains("hunter2"));
        assert_eq!(hidden.0.0, "hunter2");
    }
}
