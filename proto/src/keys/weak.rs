//! Bytes that nobody may use as a secret: those that a program left at their start, that a person
//! typed, or that stand in a document. Random bytes come out as such once in 2^45 times at most.

use aws_lc_rs::digest;

/// Why bytes are refused as a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Weak {
    /// Not 32 bytes; this many.
    Length(usize),
    /// All bytes are zero.
    Zero,
    /// A short run of bytes, over and over; its length.
    Repeated(usize),
    /// Every byte is the one before it plus the same number: 00 01 02 … 1f and its like.
    Sequence,
    /// A run of equal bytes: memory that was only partly filled. Its length.
    Run(usize),
    /// Printable characters only: a password, or the hex or base64 of a shorter key.
    Text,
    /// On the list of published bytes; where they were published.
    Published(&'static str),
}

impl std::fmt::Display for Weak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length(len) => write!(f, "it has {len} bytes where 32 are needed"),
            Self::Zero => f.write_str("it is all zero"),
            Self::Repeated(1) => f.write_str("it is one byte, repeated"),
            Self::Repeated(run) => write!(f, "it is {run} bytes, repeated"),
            Self::Sequence => f.write_str("it is a sequence of bytes, as in 00 01 02"),
            Self::Run(run) => write!(f, "{run} equal bytes follow each other in it"),
            Self::Text => f.write_str("it is text, not random bytes"),
            Self::Published(place) => write!(f, "it is published: {place}"),
        }
    }
}

impl std::error::Error for Weak {}

/// Equal bytes in a row that random bytes do not have (once in 2^51 times).
const MAX_RUN: usize = 8;

/// Bytes that stand in public documents as the key of an example: what can be known for certain,
/// and by no means all that was ever published. Kept as hex so that they can be searched for.
const PUBLISHED: [(&str, &str); 6] = [
    (
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "RFC 5869, A.1",
    ),
    (
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        "RFC 5869, A.2",
    ),
    (
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "RFC 5869, A.3",
    ),
    (
        "4ecd0eb6ec3b4d87f5d6028f922ca4c5851a277fd41311c9e62d2c9492e1c4f3",
        "RFC 8448, section 4",
    ),
    (
        "7df235f2031d2a051287d02b0241b0bfdaf86cc856231f2d5aba46c434ec196c",
        "RFC 8448, section 3",
    ),
    (
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
        "NIST SP 800-38A, appendix F",
    ),
];

/// Words whose SHA-256 people take for a secret.
const WORDS: [&str; 10] = [
    "",
    "password",
    "secret",
    "changeme",
    "test",
    "example",
    "admin",
    "key",
    "hello world",
    "sessile",
];

/// Refuses 32 bytes that are not random, with the reason.
pub(super) fn check(bytes: &[u8; 32]) -> Result<(), Weak> {
    if *bytes == [0; 32] {
        return Err(Weak::Zero);
    }
    for run in [1, 2, 4, 8, 16] {
        if bytes.chunks(run).all(|chunk| chunk == &bytes[..run]) {
            return Err(Weak::Repeated(run));
        }
    }
    let step = bytes[1].wrapping_sub(bytes[0]);
    if bytes
        .windows(2)
        .all(|pair| pair[1] == pair[0].wrapping_add(step))
    {
        return Err(Weak::Sequence);
    }
    let longest = bytes.chunk_by(|a, b| a == b).map(<[u8]>::len).max();
    if let Some(run) = longest.filter(|&run| run >= MAX_RUN) {
        return Err(Weak::Run(run));
    }
    if bytes.iter().all(|&byte| (b' '..=b'~').contains(&byte)) {
        return Err(Weak::Text);
    }
    for (hex, place) in PUBLISHED {
        if is_hex_of(hex, bytes) {
            return Err(Weak::Published(place));
        }
    }
    for word in WORDS {
        if digest::digest(&digest::SHA256, word.as_bytes()).as_ref() == bytes {
            return Err(Weak::Published("the SHA-256 of a common word"));
        }
    }
    Ok(())
}

fn is_hex_of(hex: &str, bytes: &[u8; 32]) -> bool {
    let digit = |at: usize| char::from(hex.as_bytes()[at]).to_digit(16);
    bytes.iter().enumerate().all(|(at, byte)| {
        (digit(2 * at), digit(2 * at + 1))
            == (Some(u32::from(byte >> 4)), Some(u32::from(byte & 0xf)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }

    #[test]
    fn what_a_program_left_at_its_start_is_refused_by_name() {
        assert_eq!(check(&[0; 32]), Err(Weak::Zero));
        assert_eq!(check(&[7; 32]), Err(Weak::Repeated(1)));
        let twice: [u8; 32] = std::array::from_fn(|at| [3, 200, 9, 14][at % 4]);
        assert_eq!(check(&twice), Err(Weak::Repeated(4)));
        let mut half = bytes(PUBLISHED[0].0);
        half[16..].fill(0);
        assert_eq!(check(&half), Err(Weak::Run(16)));
    }

    #[test]
    fn sequences_up_and_down_and_in_steps_are_refused() {
        for (first, step) in [(0_u8, 1_u8), (1, 1), (0x1f, 255), (0x80, 1), (5, 9)] {
            let sequence =
                std::array::from_fn(|at| first.wrapping_add(step.wrapping_mul(at as u8)));
            assert_eq!(check(&sequence), Err(Weak::Sequence), "{first} by {step}");
        }
    }

    #[test]
    fn text_is_refused_as_a_password_and_as_hex_alike() {
        assert_eq!(check(b"correct horse battery staple 42!"), Err(Weak::Text));
        assert_eq!(check(b"077709362c2e32df0ddc3f0dc47bba63"), Err(Weak::Text));
    }

    #[test]
    fn published_bytes_are_refused_with_the_place() {
        for (hex, place) in PUBLISHED {
            assert_eq!(check(&bytes(hex)), Err(Weak::Published(place)));
        }
        let of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let refused = check(&bytes(of_nothing)).unwrap_err().to_string();
        assert_eq!(refused, "it is published: the SHA-256 of a common word");
    }

    #[test]
    fn random_bytes_are_accepted() {
        for _ in 0..1000 {
            let mut random = [0; 32];
            aws_lc_rs::rand::fill(&mut random).unwrap();
            assert_eq!(check(&random), Ok(()));
        }
    }
}
