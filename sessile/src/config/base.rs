//! Where the paths of a configuration file start: at the folder of the file, or at systemd's folder of
//! credentials.

use std::path::{Path, PathBuf};

/// The environment variable with the folder of credentials. systemd sets it for a unit with `LoadCredential=`.
const VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// The folders at which paths start.
#[derive(Debug)]
pub(in crate::config) struct Base {
    /// The folder of the configuration file.
    folder: PathBuf,
    credentials: Credentials,
}

/// The folder that `$CREDENTIALS_DIRECTORY` in a path means.
#[derive(Debug)]
pub(in crate::config) enum Credentials {
    Folder(PathBuf),
    /// The process has no such folder, but opens the files: a path with the variable is an error.
    Missing,
    /// The process has no such folder, and opens none of the files: a path with the variable stays as it is.
    NotNeeded,
}

impl Credentials {
    /// The folder that the environment names, else `otherwise`.
    pub(in crate::config) fn from_env_or(otherwise: Self) -> Self {
        std::env::var_os(VARIABLE)
            .filter(|folder| !folder.is_empty())
            .map_or(otherwise, |folder| Self::Folder(folder.into()))
    }
}

impl Base {
    pub(in crate::config) fn new(folder: &Path, credentials: Credentials) -> Self {
        Self {
            folder: folder.to_owned(),
            credentials,
        }
    }

    /// For values that come from no file: paths start at the working folder.
    pub(in crate::config) fn working_folder() -> Self {
        Self::new(Path::new(""), Credentials::NotNeeded)
    }

    /// The file that a path of the configuration means. The error names `key` and the remedy.
    pub(in crate::config) fn resolve(&self, key: &str, path: &Path) -> Result<PathBuf, String> {
        let Some(rest) = path.to_str().and_then(|path| path.strip_prefix('$')) else {
            return Ok(self.folder.join(path));
        };
        let file = match rest.split_once('/') {
            Some((VARIABLE, file)) if !file.is_empty() => file,
            _ => {
                return Err(format!(
                    "`{key}` is {path:?}, and a path can begin with $CREDENTIALS_DIRECTORY/ only, with no other \
                     variable; write the path itself, or begin with ./ if the name of the file begins with $"
                ));
            }
        };
        match &self.credentials {
            Credentials::Folder(folder) => Ok(folder.join(file)),
            Credentials::NotNeeded => Ok(path.to_owned()),
            Credentials::Missing => Err(format!(
                "`{key}` is {path:?}, and CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit that has \
                 LoadCredential={file}:PATH; in a shell, set it to the folder that has {file:?}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(credentials: Credentials, path: &str) -> Result<PathBuf, String> {
        Base::new("/etc/sessile".as_ref(), credentials).resolve("chain", path.as_ref())
    }

    #[test]
    fn a_path_starts_at_its_file_or_at_the_folder_of_credentials() {
        let in_folder = |path| resolve(Credentials::Folder("/run/c".into()), path).unwrap();
        assert_eq!(in_folder("cert.pem"), Path::new("/etc/sessile/cert.pem"));
        assert_eq!(in_folder("/srv/cert.pem"), Path::new("/srv/cert.pem"));
        assert_eq!(
            in_folder("$CREDENTIALS_DIRECTORY/cert.pem"),
            Path::new("/run/c/cert.pem")
        );
        assert_eq!(in_folder("./$HOME"), Path::new("/etc/sessile/$HOME"));
    }

    #[test]
    fn without_the_folder_a_role_refuses_the_path_and_settings_keep_it() {
        let path = "$CREDENTIALS_DIRECTORY/cert.pem";
        let error = resolve(Credentials::Missing, path).unwrap_err();
        assert!(error.contains("LoadCredential=cert.pem:PATH"), "{error}");
        let kept = resolve(Credentials::NotNeeded, path).unwrap();
        assert_eq!(kept, Path::new(path));
    }

    #[test]
    fn no_other_variable_is_replaced() {
        for path in [
            "$HOME/cert.pem",
            "$CREDENTIALS_DIRECTORY",
            "$CREDENTIALS_DIRECTORY/",
            "$CREDENTIALS_DIRECTORYX/cert.pem",
            "$",
        ] {
            let error = resolve(Credentials::Folder("/run/c".into()), path).unwrap_err();
            assert!(error.contains("no other variable"), "{path}: {error}");
        }
    }
}
