//! A hash chain: a secret that moves forward one step at a time and cannot go back.

use aws_lc_rs::hkdf;
use zeroize::Zeroize;

use super::weak_secret::{self, WeakSecret};

/// 32 secret bytes, wiped when dropped and never printed.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes 32 bytes that pass the checks of [`WeakSecret`].
    ///
    /// # Errors
    /// Why the bytes are refused.
    pub fn new(bytes: &[u8]) -> Result<Self, WeakSecret> {
        let bytes: [u8; 32] = bytes
            .try_into()
            .map_err(|_| WeakSecret::Length(bytes.len()))?;
        weak_secret::check(&bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, for the key file.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// HKDF-Expand (RFC 5869, 2.3) of this secret with SHA-256, 32 bytes.
    #[must_use]
    pub fn expand(&self, info: &[&[u8]]) -> Self {
        Self(expand(&self.0, info))
    }

    /// Derives the secret for one use in one farm from a chain's secret at an epoch.
    pub(super) fn derive(&self, label: &str, scope: &str, epoch: u64) -> Self {
        self.expand(&[label.as_bytes(), scope.as_bytes(), &epoch.to_be_bytes()])
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// HKDF-Expand (RFC 5869, 2.3) of a 32-byte key with SHA-256.
pub(super) fn expand<const N: usize>(secret: &[u8; 32], info: &[&[u8]]) -> [u8; N] {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    const { assert!(N <= 255 * 32, "HKDF-SHA256 expands to no more") };
    let mut out = [0; N];
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret)
        .expand(info, Len(N))
        .and_then(|okm| okm.fill(&mut out))
        .expect("the length was checked");
    out
}

/// A hash chain at one of its epochs.
#[derive(Clone, Debug)]
pub struct Chain {
    epoch: u64,
    secret: Secret,
}

/// Most steps that a chain moves at once: 200 years of hours. A clock that is further ahead is wrong, and
/// a chain would need seconds to follow that clock.
const MAX_STEPS: u64 = 200 * 366 * 24;

impl Chain {
    /// A chain at `epoch`, with the secret of that epoch.
    #[must_use]
    pub const fn new(epoch: u64, secret: Secret) -> Self {
        Self { epoch, secret }
    }

    /// The epoch at which the chain stands.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The secret of the epoch at which the chain stands.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Moves forward to `epoch` and wipes every secret on the way.
    ///
    /// Returns false and does not move if `epoch` is not ahead, or is more than 200 years of hours ahead.
    pub fn move_to(&mut self, epoch: u64) -> bool {
        if epoch <= self.epoch || epoch - self.epoch > MAX_STEPS {
            return false;
        }
        while self.epoch < epoch {
            self.secret = self
                .secret
                .expand(&[b"sessile1 chain", &self.epoch.to_be_bytes()]);
            self.epoch += 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Chain {
        let bytes: Vec<u8> = (0..32).map(|n: u8| n.wrapping_mul(n) ^ 0x5a).collect();
        Chain::new(100, Secret::new(&bytes).unwrap())
    }

    #[test]
    fn moves_forward_the_same_way_in_one_go_and_step_by_step() {
        let (mut once, mut stepwise) = (chain(), chain());
        assert!(once.move_to(107));
        for epoch in 101..=107 {
            assert!(stepwise.move_to(epoch));
        }
        assert_eq!(once.secret().expose(), stepwise.secret().expose());
        assert_eq!(once.epoch(), 107);
    }

    #[test]
    fn never_moves_back_or_absurdly_far() {
        let mut chain = chain();
        assert!(!chain.move_to(99));
        assert!(!chain.move_to(100));
        assert!(!chain.move_to(u64::MAX));
        assert_eq!(chain.epoch(), 100);
    }

    #[test]
    fn refuses_weak_secrets_by_name() {
        assert_eq!(Secret::new(&[0; 32]).unwrap_err(), WeakSecret::Zero);
        assert_eq!(Secret::new(&[1; 31]).unwrap_err(), WeakSecret::Length(31));
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", chain().secret()), "Secret(..)");
    }
}
