//! The token that API requests must present to change something: a secret in a private file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::{constant_time, rand};

use crate::client::hex;
use crate::state_file;

/// Number of random bytes in a generated token.
const RANDOM_LEN: usize = 32;

/// Minimum number of characters in a token.
const MIN_LEN: usize = 16;

/// Maximum number of characters in a token.
const MAX_LEN: usize = 1024;

/// The secret. `Debug` does not show it.
pub struct Token(Vec<u8>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{file}: {source}", file = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{file}: mode {mode:04o} lets other users read it; run `chmod 600 {file}`, and make a new token if another \
         user may have read it", file = .path.display()
    )]
    Readable { path: PathBuf, mode: u32 },
    #[error(
        "{file}: the token must be one line of {MIN_LEN} to {MAX_LEN} characters; make one with `openssl rand -hex \
         32`",
        file = .path.display()
    )]
    Unfit { path: PathBuf },
    #[error("{file}: cannot be created: {source}", file = .path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error(
        "the operating system's random number generator failed; check that no sandbox blocks getrandom"
    )]
    Random,
}

impl Token {
    /// Reads the file, or creates it with a random token.
    ///
    /// # Errors
    ///
    /// The file cannot be read or created, others can read it, or it contains no valid token.
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        match Self::read(path) {
            Err(TokenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let mut bytes = [0; RANDOM_LEN];
                rand::fill(&mut bytes).map_err(|_| TokenError::Random)?;
                let token = hex(&bytes);
                create(path, &token).map_err(|source| TokenError::Make {
                    path: path.to_owned(),
                    source,
                })?;
                Ok(Self(token.into_bytes()))
            }
            read => read,
        }
    }

    fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Readable {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Vec::new();
        file.take(MAX_LEN as u64 + 2)
            .read_to_end(&mut text)
            .map_err(failed)?;
        let token = text.trim_ascii();
        let has_valid_len = (MIN_LEN..=MAX_LEN).contains(&token.len());
        if !has_valid_len || !token.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::Unfit {
                path: path.to_owned(),
            });
        }
        Ok(Self(token.to_owned()))
    }

    /// True if the `Authorization` header is `Bearer TOKEN` (RFC 6750, 2.1) with this token.
    pub(super) fn matches(&self, authorization: Option<&[u8]>) -> bool {
        const SCHEME: &[u8] = b"bearer ";
        let Some((scheme, token)) =
            authorization.and_then(|value| value.split_at_checked(SCHEME.len()))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case(SCHEME)
            && constant_time::verify_slices_are_equal(token.trim_ascii(), &self.0).is_ok()
    }
}

fn create(path: &Path, token: &str) -> io::Result<()> {
    state_file::make_folder(state_file::folder_of(path))?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{token}")
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_created_once_readable_only_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state").join("admin.token");
        let made = Token::open(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = Token::open(&path).unwrap();
        assert_eq!(made.0, read.0);
        let shown = format!("Bearer {}", String::from_utf8(made.0).unwrap());
        assert!(read.matches(Some(shown.as_bytes())));
        assert!(read.matches(Some(shown.replace("Bearer", "bearer").as_bytes())));
        for other in ["", "Bearer ", "Bearer x", &shown[7..], &shown[..20]] {
            assert!(!read.matches(Some(other.as_bytes())), "{other}");
        }
        assert!(!read.matches(None));
    }

    #[test]
    fn refuses_tokens_that_others_can_read_and_malformed_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(
            Token::open(&path),
            Err(TokenError::Readable { mode: 0o644, .. })
        ));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        Token::open(&path).unwrap();
        for text in ["", "short", "0123456789 abcdef", &"x".repeat(MAX_LEN + 1)] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Token::open(&path), Err(TokenError::Unfit { .. })));
        }
    }
}
