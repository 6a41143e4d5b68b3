//! Key files made and changed: by a first start, and by an operator's command.

use std::path::Path;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::keys::{CannotRotate, FarmKey, Secret};

use super::{KeyError, file};
use crate::clock;

/// How often ticket keys change in a key that is made without being asked about it.
pub const DEFAULT_ROTATE: Duration = Duration::from_secs(60 * 60);

/// Longest life of a session in a key that is made without being asked about it.
pub const DEFAULT_MAX_LIFETIME: Duration = Duration::from_secs(10 * 60 * 60);

/// How the secret of a farm changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// A new generation: accepted at once, used from then on; `None`: when it is activated.
    Add(Option<Time>),
    /// The generation that waits seals from then on.
    Activate(Time),
    /// A new generation that is used at once; all others end at once.
    Replace,
}

/// Makes a key file that must not be there yet. A farm without a name gets a random one.
pub fn create(
    path: &Path,
    scope: Option<&str>,
    rotate: Duration,
    max_lifetime: Duration,
    now: Time,
) -> Result<FarmKey, KeyError> {
    let scope = scope.map_or_else(random_scope, |scope| Ok(scope.to_owned()))?;
    let key = FarmKey::new(scope, rotate, max_lifetime, random_secrets()?, now)?;
    file::write_new(path, &key)?;
    Ok(key)
}

/// Changes the secret in a key file. Returns the key and the number of the generation that was
/// added or activated.
pub fn rotate(path: &Path, rotation: Rotation, now: Time) -> Result<(FarmKey, u8), KeyError> {
    let mut number = 0;
    let key = file::update(path, |key| {
        let rotated = match rotation {
            Rotation::Add(activates) => key.add_generation(random_secrets()?, activates, now),
            Rotation::Activate(at) => key.activate(at, now),
            Rotation::Replace => key.replace(random_secrets()?, now),
        };
        number = rotated.map_err(|source: CannotRotate| KeyError::Rotate {
            path: path.to_owned(),
            source,
        })?;
        Ok::<_, KeyError>(true)
    })?;
    Ok((key, number))
}

/// A new key with the default terms, made to allow for sessions that live that long.
pub(super) fn fresh(lifetime: Duration) -> Result<FarmKey, KeyError> {
    let max_lifetime = lifetime.clamp(DEFAULT_MAX_LIFETIME, sessile_proto::keys::MAX_LIFETIME);
    // Whole seconds: what the file can say.
    let max_lifetime = Duration::from_secs(max_lifetime.as_secs());
    Ok(FarmKey::new(
        random_scope()?,
        DEFAULT_ROTATE,
        max_lifetime,
        random_secrets()?,
        clock::now(),
    )?)
}

fn random_scope() -> Result<String, KeyError> {
    let mut name = [0; 4];
    random(&mut name)?;
    Ok(format!("farm-{:08x}", u32::from_be_bytes(name)))
}

/// Secrets for the ticket and the route chain of a generation.
pub(super) fn random_secrets() -> Result<[Secret; 2], KeyError> {
    Ok([random_secret()?, random_secret()?])
}

fn random_secret() -> Result<Secret, KeyError> {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    random(&mut *bytes)?;
    Secret::new(&*bytes).map_err(|_| KeyError::Random)
}

fn random(bytes: &mut [u8]) -> Result<(), KeyError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| KeyError::Random)
}
