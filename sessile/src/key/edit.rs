//! Makes a key file at a server's first start, and makes and changes key files for `sessile key`.

use std::path::Path;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::keys::{CannotRotate, FarmKey, Secret};

use super::{KeyError, file};
use crate::clock;

/// The default for how often ticket keys change.
pub const DEFAULT_ROTATE: Duration = Duration::from_secs(60 * 60);

/// The default for the longest life of a session.
pub const DEFAULT_MAX_LIFETIME: Duration = Duration::from_secs(10 * 60 * 60);

/// How the secret of a farm changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Adds a generation that is accepted at once. With a time, it seals from then on; with `None`, it
    /// waits for [`Rotation::Activate`].
    Add(Option<Time>),
    /// The waiting generation seals from this time on.
    Activate(Time),
    /// Adds a generation that seals at once, and ends all other generations at once.
    Replace,
}

/// Makes a new key file. `scope` is the farm's name, random by default.
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

/// A new key with the default terms, and a maximum lifetime of at least `lifetime`.
pub(super) fn fresh(lifetime: Duration) -> Result<FarmKey, KeyError> {
    let max_lifetime = lifetime.clamp(DEFAULT_MAX_LIFETIME, sessile_proto::keys::MAX_LIFETIME);
    Ok(FarmKey::new(
        random_scope()?,
        DEFAULT_ROTATE,
        // The file holds whole seconds.
        Duration::from_secs(max_lifetime.as_secs()),
        random_secrets()?,
        clock::now(),
    )?)
}

fn random_scope() -> Result<String, KeyError> {
    let mut name = [0; 4];
    random(&mut name)?;
    Ok(format!("farm-{:08x}", u32::from_be_bytes(name)))
}

/// Secrets for the ticket chain and the route chain of a generation.
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
