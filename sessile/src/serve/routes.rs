//! Finds the route of a path.
//!
//! Servers decode and normalize paths in different ways. A path is refused if an upstream could see another
//! route in it than this server.

use std::borrow::Cow;
use std::cmp::Reverse;

/// Another server could find another route for the path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AmbiguousPath;

/// Values by path prefix.
pub(super) struct Routes<T> {
    /// Each path as its decoded segments, the longest path first.
    by_path: Vec<(Vec<Vec<u8>>, T)>,
}

impl<T> FromIterator<(String, T)> for Routes<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(routes: I) -> Self {
        let mut by_path: Vec<_> = routes
            .into_iter()
            .map(|(path, value)| (segments(&path).map(Cow::into_owned).collect(), value))
            .collect();
        by_path.sort_by_key(|(path, _): &(Vec<_>, T)| Reverse(path.len()));
        Self { by_path }
    }
}

impl<T> Routes<T> {
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.by_path.iter().map(|(_, value)| value)
    }

    /// Finds the longest route that is a prefix of a path. Returns its value and the rest of the path.
    ///
    /// The rest is as the client wrote it. Segments are compared decoded, and several slashes count as one.
    ///
    /// # Errors
    /// Another server could find another route for the path.
    pub(super) fn find<'p>(&self, path: &'p str) -> Result<Option<(&T, &'p str)>, AmbiguousPath> {
        let found = if is_plain(path) {
            self.longest_prefix(|| plain_segments(path).map(Cow::Borrowed))
        } else {
            self.find_if_clear(path)?
        };
        if !path.starts_with('/') {
            return Ok(None);
        }
        Ok(found.map(|index| {
            let (route, value) = &self.by_path[index];
            (value, below(path, route.len()))
        }))
    }

    /// As [`Self::longest_prefix`].
    ///
    /// # Errors
    /// Another server could find another route for the path.
    fn find_if_clear(&self, path: &str) -> Result<Option<usize>, AmbiguousPath> {
        if !is_well_encoded(path.as_bytes()) {
            return Err(AmbiguousPath);
        }
        let decoded = decoded(path.as_bytes());
        // A server that resolves dot segments could find another route.
        if loose_segments(&decoded).any(|segment| matches!(segment, b"." | b"..")) {
            return Err(AmbiguousPath);
        }
        let found = self.longest_prefix(|| segments(path));
        // The strict reading splits the path at the fewest bytes, the loose reading at the most. If both
        // find the same route, every reading between them finds it too. The reason is that no segment of a
        // route can be split.
        if found != self.longest_prefix(|| loose_segments(&decoded).map(Cow::Borrowed)) {
            return Err(AmbiguousPath);
        }
        Ok(found)
    }

    fn longest_prefix<'s, S>(&self, segments: impl Fn() -> S) -> Option<usize>
    where
        S: Iterator<Item = Cow<'s, [u8]>>,
    {
        self.by_path.iter().position(|(route, _)| {
            let mut segments = segments();
            route
                .iter()
                .all(|expected| segments.next().is_some_and(|segment| *expected == *segment))
        })
    }
}

/// True if all servers find the same segments, and no segment is encoded or a dot segment.
fn is_plain(path: &str) -> bool {
    let is_special = |byte| matches!(byte, b'%' | b'\\' | b';' | b'?' | b'#');
    !path.bytes().any(is_special) && !plain_segments(path).any(|name| matches!(name, b"." | b".."))
}

/// The segments of a path that is not encoded.
fn plain_segments(path: &str) -> impl Iterator<Item = &[u8]> {
    let segments = path.as_bytes().split(|byte| *byte == b'/');
    segments.filter(|segment| !segment.is_empty())
}

/// The rest of a path after a number of segments.
fn below(path: &str, segments: usize) -> &str {
    let mut rest = path;
    for _ in 0..segments {
        rest = rest.trim_start_matches('/');
        rest = &rest[rest.find('/').unwrap_or(rest.len())..];
    }
    rest
}

/// The decoded segments of a path. The path is split first (RFC 3986, 2.4).
fn segments(path: &str) -> impl Iterator<Item = Cow<'_, [u8]>> {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| decoded(segment.as_bytes()))
}

/// The segments of a decoded path, as the most lenient servers find them.
///
/// Such a server treats a backslash as a slash. It also ignores the rest of a segment after `;`, `?` or
/// `#`.
fn loose_segments(decoded: &[u8]) -> impl Iterator<Item = &[u8]> {
    decoded
        .split(|byte| b"/\\".contains(byte))
        .filter_map(|segment| segment.split(|byte| b";?#".contains(byte)).next())
        .filter(|segment| !segment.is_empty())
}

/// True if two hexadecimal digits follow every `%`, and no byte is zero.
fn is_well_encoded(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'%')
        .skip(1)
        // A server in C could end the path at a zero byte.
        .all(|text| hex_byte(text).is_some_and(|byte| byte != 0))
}

/// The byte that the first two hexadecimal digits of a text encode.
fn hex_byte(text: &[u8]) -> Option<u8> {
    let digit = |index: usize| char::from(*text.get(index)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut parts = text.split(|byte| *byte == b'%');
    let mut decoded = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        match hex_byte(part) {
            Some(byte) => {
                decoded.push(byte);
                decoded.extend_from_slice(&part[2..]);
            }
            None => {
                decoded.push(b'%');
                decoded.extend_from_slice(part);
            }
        }
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(paths: &[&str]) -> Routes<String> {
        paths
            .iter()
            .map(|path| ((*path).to_owned(), (*path).to_owned()))
            .collect()
    }

    #[test]
    fn the_longest_route_wins_and_the_rest_of_the_path_is_unchanged() {
        let routes = routes(&["/", "/a", "/a/b", "/caf%C3%A9"]);
        for (path, route, below) in [
            ("/", "/", "/"),
            ("/x", "/", "/x"),
            ("/ab", "/", "/ab"),
            ("/a", "/a", ""),
            ("/a/", "/a", "/"),
            ("/a/c%2Fd;e/", "/a", "/c%2Fd;e/"),
            ("/a/b/c", "/a/b", "/c"),
            ("/%61/%62/c", "/a/b", "/c"),
            ("//a///b//c", "/a/b", "//c"),
            ("/A", "/", "/A"),
            ("/caf%c3%a9/x", "/caf%C3%A9", "/x"),
            ("/...", "/", "/..."),
            ("/x%2fy\\z;a", "/", "/x%2fy\\z;a"),
        ] {
            let found = routes.find(path);
            assert_eq!(found, Ok(Some((&route.to_owned(), below))), "{path}");
        }
        assert_eq!(routes.find("*"), Ok(None));
    }

    #[test]
    fn a_path_outside_of_all_routes_has_none() {
        let routes = routes(&["/a"]);
        for path in ["/", "/b", "/ab", "//", "/b/a"] {
            assert_eq!(routes.find(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn paths_that_other_servers_read_differently_are_refused() {
        let routes = routes(&["/", "/internal", "/a/b"]);
        for path in [
            "/..",
            "/x/./y",
            "/%2e%2E/internal",
            "/.%2e",
            "/a/..;x=1/b",
            "/x/..%2finternal",
            "/x%2f..%2finternal",
            "/x\\..\\internal",
            "/x%5C..%5cinternal",
            "/x/%2e%2e%3bx/internal",
            "/%2finternal",
            "/internal%2fx",
            "/internal\\x",
            "/internal;x",
            "/internal%3Fx",
            "/internal%23",
            "/;x/internal",
            "/%5cinternal",
            "/a%2fb",
            "/a/b%5cc",
            "/internal%00",
            "/%zz",
            "/x%",
            "/%u0069nternal",
        ] {
            assert_eq!(routes.find(path), Err(AmbiguousPath), "{path}");
        }
    }
}
