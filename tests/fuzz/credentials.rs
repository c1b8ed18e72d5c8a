//! Where Synapse finds a token (`get_access_token_from_request` in `synapse/api/auth/base.py`).

use synapse_media_usage::error::Error;

/// The token of a request with such `Authorization` headers and such an `access_token`.
pub fn token<'a>(
    authorizations: &[&'a [u8]],
    parameter: Option<&'a [u8]>,
) -> Result<&'a [u8], Error> {
    let token = match (authorizations, parameter) {
        ([], None) => return Err(Error::MISSING_TOKEN),
        ([], Some(token)) => token,
        (_, Some(_)) => return Err(Error::MIXED_CREDENTIALS),
        ([authorization], None) => {
            let parts: Vec<_> = trim(authorization).split(|byte| *byte == b' ').collect();
            match parts[..] {
                [b"Bearer", token] if !token.is_empty() => token,
                _ => return Err(Error::INVALID_AUTHORIZATION_HEADER),
            }
        }
        (_, None) => return Err(Error::TOO_MANY_AUTHORIZATION_HEADERS),
    };
    // No token in the database has such bytes (D8).
    if token.contains(&0) || str::from_utf8(token).is_err() {
        return Err(Error::UNKNOWN_TOKEN);
    }
    Ok(token)
}

/// A header's value without the blanks around it (RFC 9110, section 5.5).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
