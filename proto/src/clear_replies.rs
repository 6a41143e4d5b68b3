//! Parses replies that servers and proxies send in clear before TLS. It does no I/O.

/// What the bytes of a reply say so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// More bytes are needed.
    Incomplete,
    /// The server consents.
    Positive,
    /// The first printable characters of the reply.
    Negative(String),
}

/// Maximum number of characters of a reply in an error.
const MAX_SHOWN: usize = 120;

/// A reply of SMTP (RFC 5321, 4.2.1) or FTP (RFC 959, 4.2), which can have several lines.
#[must_use]
pub fn numeric(reply: &[u8], code: &str) -> Reply {
    let Some(last) = last_line(reply) else {
        return Reply::Incomplete;
    };
    let is_code = reply.len() > 3 && reply[..3].iter().all(u8::is_ascii_digit);
    let continues = is_code && reply[3] == b'-';
    let is_end = last.starts_with(&reply[..3.min(reply.len())]) && last.get(3) != Some(&b'-');
    if continues && !is_end {
        return Reply::Incomplete;
    }
    positive_if(reply.starts_with(code.as_bytes()), last)
}

/// The greeting of an FTP server. A `120` reply announces a delay, and the greeting follows it (RFC 959, 5.4).
#[must_use]
pub fn ftp_greeting(reply: &[u8]) -> Reply {
    let line_ends = (1..=reply.len()).filter(|end| reply[end - 1] == b'\n');
    let delay_end = line_ends
        .filter(|_| reply.starts_with(b"120"))
        .find(|end| numeric(&reply[..*end], "120") == Reply::Positive);
    numeric(&reply[delay_end.unwrap_or(0)..], "220")
}

/// The first line of an IMAP server. `PREAUTH` is refused, because it forbids STARTTLS (RFC 9051, 7.1.4).
#[must_use]
pub fn imap_greeting(reply: &[u8]) -> Reply {
    match last_line(reply) {
        Some(line) => positive_if(has_prefix(line, "* OK"), line),
        None => Reply::Incomplete,
    }
}

/// The reply to the command with the tag `a`, after any number of untagged lines.
#[must_use]
pub fn imap_tagged(reply: &[u8]) -> Reply {
    match last_line(reply) {
        Some(line) if !line.starts_with(b"* ") => positive_if(has_prefix(line, "a OK"), line),
        _ => Reply::Incomplete,
    }
}

/// One line of a POP3 server (RFC 1939, 3).
#[must_use]
pub fn pop3(reply: &[u8]) -> Reply {
    match last_line(reply) {
        Some(line) => positive_if(line.starts_with(b"+OK"), line),
        None => Reply::Incomplete,
    }
}

/// The head of a proxy's response to CONNECT. Each 2xx status opens the tunnel (RFC 9110, 9.3.6).
#[must_use]
pub fn connect(reply: &[u8]) -> Reply {
    if !reply.ends_with(b"\n\r\n") && !reply.ends_with(b"\n\n") {
        return Reply::Incomplete;
    }
    let status = reply
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let is_open = has_prefix(status, "HTTP/1.") && status.get(8..10) == Some(b" 2");
    positive_if(is_open, status)
}

/// An LDAP message with `ExtendedResponse` (RFC 4511, 4.12).
#[must_use]
pub fn ldap(reply: &[u8]) -> Reply {
    match reply.first() {
        None => return Reply::Incomplete,
        Some(0x30) => {}
        Some(_) => return Reply::Negative("no LDAP message".to_owned()),
    }
    let Some((_, message, _)) = ber_element(reply) else {
        return Reply::Incomplete;
    };
    match ldap_result(message) {
        Some((&[0], _)) => Reply::Positive,
        Some((code, text)) => {
            let code = code.first().copied().unwrap_or_default();
            Reply::Negative(format!("result code {code}: {}", printable(text)))
        }
        None => Reply::Negative("an LDAP message without a result of StartTLS".to_owned()),
    }
}

/// The result code and the diagnostic message of an extended response.
fn ldap_result(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (0x02, _, rest) = ber_element(message)? else {
        return None;
    };
    let (0x78, response, _) = ber_element(rest)? else {
        return None;
    };
    let (0x0a, code, rest) = ber_element(response)? else {
        return None;
    };
    let (_, _matched_name, rest) = ber_element(rest)?;
    let (_, text, _) = ber_element(rest)?;
    Some((code, text))
}

/// The tag and the contents of the first BER element, and the bytes after it. `None` if bytes are missing.
fn ber_element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, short], rest) = bytes.split_first_chunk::<2>()?;
    let (len, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
        let value = digits.iter().fold(0_usize, |value, digit| {
            value
                .saturating_mul(256)
                .saturating_add(usize::from(*digit))
        });
        (value, rest)
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((tag, contents, rest))
}

/// The last line without its end. `None` if the reply ends inside a line.
fn last_line(reply: &[u8]) -> Option<&[u8]> {
    let lines = reply.strip_suffix(b"\n")?;
    let line = lines.rsplit(|byte| *byte == b'\n').next()?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

fn has_prefix(line: &[u8], prefix: &str) -> bool {
    let start = line.get(..prefix.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn positive_if(is_positive: bool, line: &[u8]) -> Reply {
    if is_positive {
        Reply::Positive
    } else {
        Reply::Negative(printable(line))
    }
}

/// The first characters, with `?` in the place of control characters.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let shown = text.trim_end().chars().take(MAX_SHOWN);
    shown
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that the reply is positive, and that each shorter prefix is incomplete.
    fn assert_exact(reply: &[u8], parse: impl Fn(&[u8]) -> Reply) {
        for len in 0..reply.len() {
            assert_eq!(parse(&reply[..len]), Reply::Incomplete, "{len}");
        }
        assert_eq!(parse(reply), Reply::Positive);
    }

    #[test]
    fn positive_replies_end_at_their_last_byte() {
        let smtp = |reply: &[u8]| numeric(reply, "250");
        assert_exact(b"250 ready\r\n", smtp);
        assert_exact(b"250-mx.test\r\n250-SIZE 1\r\n250 STARTTLS\r\n", smtp);
        assert_exact(b"250-two\r\n text\r\n251 text\r\n250 end\r\n", smtp);
        assert_exact(b"220-FTP\r\n220 ready\r\n", ftp_greeting);
        assert_exact(b"* OK [CAPABILITY STARTTLS] ready\r\n", imap_greeting);
        assert_exact(b"* CAPABILITY IMAP4\r\na OK begin\r\n", imap_tagged);
        assert_exact(b"+OK begin\r\n", pop3);
        assert_exact(b"HTTP/1.1 200 OK\r\nVia: a\r\n\r\n", connect);
        assert_exact(
            b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00",
            ldap,
        );
        assert_exact(
            b"\x30\x84\0\0\0\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00",
            ldap,
        );
    }

    #[test]
    fn an_ftp_greeting_may_follow_an_announced_delay() {
        assert_exact(b"120 wait\r\n220 ready\r\n", ftp_greeting);
        assert_exact(b"120-wait\r\n120 2 min\r\n220-a\r\n220 b\r\n", ftp_greeting);
        let closed = ftp_greeting(b"120 wait\r\n421 closed\r\n");
        assert_eq!(closed, Reply::Negative("421 closed".to_owned()));
    }

    #[test]
    fn negative_replies_are_quoted() {
        let negative = |text: &str| Reply::Negative(text.to_owned());
        assert_eq!(numeric(b"502 no\x07\r\n", "220"), negative("502 no?"));
        assert_eq!(numeric(b"x\r\n", "220"), negative("x"));
        assert_eq!(imap_greeting(b"* PREAUTH hi\r\n"), negative("* PREAUTH hi"));
        assert_eq!(imap_tagged(b"a BAD no\r\n"), negative("a BAD no"));
        assert_eq!(pop3(b"-ERR no\r\n"), negative("-ERR no"));
        let denied = b"HTTP/1.1 403 Forbidden\r\n\r\n";
        assert_eq!(connect(denied), negative("HTTP/1.1 403 Forbidden"));
        let refused = b"\x30\x0e\x02\x01\x01\x78\x09\x0a\x01\x02\x04\x00\x04\x02no";
        assert_eq!(ldap(refused), negative("result code 2: no"));
        assert_eq!(ldap(b"H"), negative("no LDAP message"));
    }

    #[test]
    fn a_quoted_reply_is_bounded() {
        let long = [&[b'x'; 1000][..], b"\r\n"].concat();
        assert_eq!(pop3(&long), Reply::Negative("x".repeat(MAX_SHOWN)));
    }
}
