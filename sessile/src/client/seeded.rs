//! A crypto provider whose random bytes follow from a seed, so that rustls can write the same ClientHello twice. Only
//! the test of replayed early data uses this provider.

use std::cell::RefCell;
use std::fmt;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use aws_lc_rs::rand;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret,
    SupportedKxGroup, aws_lc_rs as provider,
};
use rustls::{Error, NamedGroup, PeerMisbehaved};
use zeroize::Zeroizing;

/// The source of all random bytes of one ClientHello.
#[derive(Clone)]
pub(super) struct Seed(Zeroizing<[u8; SHA256_OUTPUT_LEN]>);

impl Seed {
    pub(super) fn random() -> Result<Self, Error> {
        let mut bytes = Zeroizing::new([0; SHA256_OUTPUT_LEN]);
        rand::fill(&mut *bytes).map_err(|_| GetRandomFailed)?;
        Ok(Self(bytes))
    }

    /// Runs `make`. All random bytes of the seeded provider follow from the seed meanwhile.
    pub(super) fn run<T>(&self, make: impl FnOnce() -> T) -> T {
        let generator = Generator {
            seed: self.clone(),
            blocks: 0,
        };
        GENERATOR.set(Some(generator));
        let made = make();
        GENERATOR.set(None);
        made
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seed").finish_non_exhaustive()
    }
}

/// The provider. It has no random bytes outside of [`Seed::run`].
pub(super) fn crypto() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![&SeededX25519],
        secure_random: &SeededRandom,
        ..provider::default_provider()
    }
}

thread_local! {
    // rustls wants a static source of random bytes, so the seed cannot be a field of the source.
    static GENERATOR: RefCell<Option<Generator>> = const { RefCell::new(None) };
}

/// SHA-256 of the seed and a counter.
struct Generator {
    seed: Seed,
    blocks: u64,
}

impl Generator {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(SHA256_OUTPUT_LEN) {
            let mut input = Zeroizing::new(self.seed.0.to_vec());
            input.extend_from_slice(&self.blocks.to_be_bytes());
            let block = digest(&SHA256, &input);
            chunk.copy_from_slice(&block.as_ref()[..chunk.len()]);
            self.blocks += 1;
        }
    }
}

#[derive(Debug)]
struct SeededRandom;

impl SecureRandom for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        GENERATOR.with_borrow_mut(|generator| match generator {
            Some(generator) => {
                generator.fill(bytes);
                Ok(())
            }
            None => Err(GetRandomFailed),
        })
    }
}

#[derive(Debug)]
struct SeededX25519;

impl SupportedKxGroup for SeededX25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut bytes = Zeroizing::new([0; X25519_KEY_LEN]);
        SeededRandom.fill(&mut *bytes)?;
        let failed = |_| Error::General("cannot make a key of X25519".to_owned());
        let private = PrivateKey::from_private_key(&X25519, &*bytes).map_err(failed)?;
        let failed = |_| Error::General("cannot make a public key of X25519".to_owned());
        let public = private.compute_public_key().map_err(failed)?;
        Ok(Box::new(KeyExchange {
            public: public.as_ref().to_vec(),
            private,
        }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

const X25519_KEY_LEN: usize = 32;

struct KeyExchange {
    private: PrivateKey,
    public: Vec<u8>,
}

impl ActiveKeyExchange for KeyExchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer = UnparsedPublicKey::new(&X25519, peer);
        let invalid = PeerMisbehaved::InvalidKeyShare.into();
        agree(&self.private, peer, invalid, |secret| Ok(secret.into()))
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: &Seed) -> ([u8; 40], Vec<u8>) {
        seed.run(|| {
            let mut bytes = [0; 40];
            SeededRandom.fill(&mut bytes).unwrap();
            let exchange = SeededX25519.start().unwrap();
            (bytes, exchange.pub_key().to_vec())
        })
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_key_and_another_seed_others() {
        let [one, other] = [(); 2].map(|()| Seed::random().unwrap());
        let (bytes, public) = drawn(&one);
        assert_eq!(drawn(&one), (bytes, public.clone()));
        let (other_bytes, other_public) = drawn(&other);
        assert_ne!(other_bytes, bytes);
        assert_ne!(other_public, public);
        assert_ne!(bytes[..8], bytes[32..], "no block repeats");
    }

    #[test]
    fn there_are_no_random_bytes_without_a_seed() {
        assert!(SeededRandom.fill(&mut [0]).is_err());
    }
}
