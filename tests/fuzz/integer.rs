//! Integers of any size, as Python has them.

use num_bigint::BigInt;

/// What `int(text)` makes of bytes, but for its limit of 4300 digits (D4).
pub fn python_int(text: &[u8]) -> Option<BigInt> {
    #[derive(PartialEq)]
    enum State {
        Before,
        Sign,
        Digit,
        Underscore,
        After,
    }
    let (mut state, mut negative, mut digits) = (State::Before, false, String::new());
    for byte in text {
        state = match (state, byte) {
            (State::Before, b'\t'..=b'\r' | b' ') => State::Before,
            (State::Before, b'+' | b'-') => {
                negative = *byte == b'-';
                State::Sign
            }
            (State::Before | State::Sign | State::Digit | State::Underscore, b'0'..=b'9') => {
                digits.push(char::from(*byte));
                State::Digit
            }
            (State::Digit, b'_') => State::Underscore,
            (State::Digit | State::After, b'\t'..=b'\r' | b' ') => State::After,
            _ => return None,
        };
    }
    if !matches!(state, State::Digit | State::After) {
        return None;
    }
    let magnitude: BigInt = digits.parse().ok()?;
    Some(if negative { -magnitude } else { magnitude })
}
