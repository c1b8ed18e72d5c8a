//! Form data, read byte by byte as the WHATWG URL standard says, and checked against `url`'s reading.

use url::form_urlencoded;

/// Names and values, decoded.
pub type Form = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads form data.
///
/// # Panics
///
/// If `url` reads it differently; it replaces what is not UTF-8.
pub fn parse(text: &str) -> Form {
    let items = text.split('&').filter(|item| !item.is_empty());
    let form: Form = items
        .map(|item| match item.find('=') {
            Some(at) => (decode(&item[..at]), decode(&item[at + 1..])),
            None => (decode(item), Vec::new()),
        })
        .collect();
    let mut others = form_urlencoded::parse(text.as_bytes());
    for (name, value) in &form {
        let other = others.next().expect("url finds fewer items");
        assert_eq!(other.0, String::from_utf8_lossy(name));
        assert_eq!(other.1, String::from_utf8_lossy(value));
    }
    assert!(others.next().is_none(), "url finds more items");
    form
}

/// The first value of a name.
pub fn first<'a>(form: &'a Form, name: &str) -> Option<&'a [u8]> {
    form.iter().find(|(other, _)| other == name.as_bytes()).map(|(_, value)| value.as_slice())
}

fn decode(text: &str) -> Vec<u8> {
    let (mut bytes, mut decoded) = (text.as_bytes(), Vec::new());
    while let [first, rest @ ..] = bytes {
        let hex =
            |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        (bytes, decoded) = match (first, rest) {
            (b'%', [high, low, after @ ..])
                if let (Some(high), Some(low)) = (hex(*high), hex(*low)) =>
            {
                decoded.push(high * 16 + low);
                (after, decoded)
            }
            _ => {
                decoded.push(if *first == b'+' { b' ' } else { *first });
                (rest, decoded)
            }
        };
    }
    decoded
}
