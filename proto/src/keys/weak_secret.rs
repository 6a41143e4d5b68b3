//! Refuses bytes that are not random: uninitialised memory, typed text, published examples.
//!
//! Random bytes are refused at most once in 2^45 times.

use aws_lc_rs::digest;

/// Why bytes are refused as a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WeakSecret {
    /// The secret has this many bytes instead of 32.
    #[error("it has {0} bytes where 32 are needed")]
    Length(usize),
    /// All bytes are zero.
    #[error("it is all zero")]
    Zero,
    /// A group of this many bytes is repeated.
    #[error("it is {}, repeated", bytes_in_words(*.0))]
    Repeated(usize),
    /// Each byte is the previous byte plus a constant, as in 00 01 02.
    #[error("it is a sequence of bytes, as in 00 01 02")]
    Sequence,
    /// This many equal bytes follow each other, as in memory that is only partly filled.
    #[error("{0} equal bytes follow each other in it")]
    Run(usize),
    /// All bytes are printable: a password, or a shorter key in hex or base64.
    #[error("it is text, not random bytes")]
    Text,
    /// The bytes are published in this document.
    #[error("it is published: {0}")]
    Published(&'static str),
}

fn bytes_in_words(count: usize) -> String {
    match count {
        1 => "one byte".to_owned(),
        _ => format!("{count} bytes"),
    }
}

/// Shortest run of equal bytes that is refused. Random bytes have such a run once in 2^51 times.
const MAX_RUN: usize = 8;

/// Example keys from public documents, in hex so that a text search finds them. The list is not complete.
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

/// Words whose SHA-256 people use as a secret.
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

/// Checks that 32 bytes look random.
pub(super) fn check(bytes: &[u8; 32]) -> Result<(), WeakSecret> {
    if *bytes == [0; 32] {
        return Err(WeakSecret::Zero);
    }
    for run in [1, 2, 4, 8, 16] {
        if bytes.chunks(run).all(|chunk| chunk == &bytes[..run]) {
            return Err(WeakSecret::Repeated(run));
        }
    }
    let step = bytes[1].wrapping_sub(bytes[0]);
    if bytes
        .windows(2)
        .all(|pair| pair[1] == pair[0].wrapping_add(step))
    {
        return Err(WeakSecret::Sequence);
    }
    let longest = bytes.chunk_by(|a, b| a == b).map(<[u8]>::len).max();
    if let Some(run) = longest.filter(|&run| run >= MAX_RUN) {
        return Err(WeakSecret::Run(run));
    }
    if bytes.iter().all(|&byte| (b' '..=b'~').contains(&byte)) {
        return Err(WeakSecret::Text);
    }
    match published().find(|(secret, _)| secret == bytes) {
        Some((_, place)) => Err(WeakSecret::Published(place)),
        None => Ok(()),
    }
}

/// The known published secrets, each with its place.
pub(crate) fn published() -> impl Iterator<Item = ([u8; 32], &'static str)> {
    let examples = PUBLISHED.into_iter();
    let examples = examples.map(|(hex, place)| (from_hex(hex), place));
    let of_words = WORDS.into_iter().map(|word| {
        let hash = digest::digest(&digest::SHA256, word.as_bytes());
        let hash = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
        (hash, "the SHA-256 of a common word")
    });
    examples.chain(of_words)
}

/// The bytes of 64 hexadecimal digits.
fn from_hex(hex: &str) -> [u8; 32] {
    let digit = |at: usize| {
        let digit = char::from(hex.as_bytes()[at]).to_digit(16);
        u8::try_from(digit.expect("a digit")).expect("below 16")
    };
    std::array::from_fn(|at| 16 * digit(2 * at) + digit(2 * at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_left_at_its_start_is_refused_by_name() {
        assert_eq!(check(&[0; 32]), Err(WeakSecret::Zero));
        assert_eq!(check(&[7; 32]), Err(WeakSecret::Repeated(1)));
        let twice: [u8; 32] = std::array::from_fn(|at| [3, 200, 9, 14][at % 4]);
        assert_eq!(check(&twice), Err(WeakSecret::Repeated(4)));
        let mut half = from_hex(PUBLISHED[0].0);
        half[16..].fill(0);
        assert_eq!(check(&half), Err(WeakSecret::Run(16)));
    }

    #[test]
    fn sequences_up_and_down_and_in_steps_are_refused() {
        for (first, step) in [(0_u8, 1_u8), (1, 1), (0x1f, 255), (0x80, 1), (5, 9)] {
            let sequence =
                std::array::from_fn(|at| first.wrapping_add(step.wrapping_mul(at as u8)));
            assert_eq!(
                check(&sequence),
                Err(WeakSecret::Sequence),
                "{first} by {step}"
            );
        }
    }

    #[test]
    fn text_is_refused_as_a_password_and_as_hex_alike() {
        assert_eq!(
            check(b"correct horse battery staple 42!"),
            Err(WeakSecret::Text)
        );
        assert_eq!(
            check(b"077709362c2e32df0ddc3f0dc47bba63"),
            Err(WeakSecret::Text)
        );
    }

    #[test]
    fn published_bytes_are_refused_with_the_place() {
        for (hex, place) in PUBLISHED {
            assert_eq!(check(&from_hex(hex)), Err(WeakSecret::Published(place)));
        }
        let of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let refused = check(&from_hex(of_nothing)).unwrap_err().to_string();
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
