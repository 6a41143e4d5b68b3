//! Which route a path leads to. A path can be written in many ways, and servers differ in which of them
//! they take for the same; one that would lead an upstream to another route than this server is refused.

use std::borrow::Cow;
use std::cmp::Reverse;

/// A path that can be read in two ways, of which a route knows only one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unclear;

/// Things by the path that they are at.
pub(super) struct Routes<T> {
    /// The segments of the path, decoded. The longest first.
    by_path: Vec<(Vec<Vec<u8>>, T)>,
}

impl<T> FromIterator<(String, T)> for Routes<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(routes: I) -> Self {
        let routes = routes.into_iter();
        let mut by_path: Vec<_> = routes
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

    /// What the longest route is to that a path lies below, and what of the path lies below it, as it
    /// was written. Segments are compared decoded, and several slashes are one.
    pub(super) fn find<'p>(&self, path: &'p str) -> Result<Option<(&T, &'p str)>, Unclear> {
        if !is_well_encoded(path.as_bytes()) {
            return Err(Unclear);
        }
        let decoded = decoded(path.as_bytes());
        // Whoever resolves them finds itself on another route.
        if loose_segments(&decoded).any(|segment| matches!(segment, b"." | b"..")) {
            return Err(Unclear);
        }
        if !path.starts_with('/') {
            return Ok(None);
        }
        let found = self.longest(|| segments(path));
        // One reading divides the path least, the other most, and a route's own segments have nothing to
        // divide: if both lead to the same route, so do all between them.
        if found != self.longest(|| loose_segments(&decoded).map(Cow::Borrowed)) {
            return Err(Unclear);
        }
        Ok(found.map(|at| {
            let (route, value) = &self.by_path[at];
            (value, below(path, route.len()))
        }))
    }

    fn longest<'s, S>(&self, segments: impl Fn() -> S) -> Option<usize>
    where
        S: Iterator<Item = Cow<'s, [u8]>>,
    {
        self.by_path.iter().position(|(route, _)| {
            let mut segments = segments();
            let mut route = route.iter();
            route.all(|its| segments.next().is_some_and(|segment| *its == *segment))
        })
    }
}

/// What is behind so many segments.
fn below(path: &str, segments: usize) -> &str {
    (0..segments).fold(path, |path, _| {
        let path = path.trim_start_matches('/');
        &path[path.find('/').unwrap_or(path.len())..]
    })
}

/// The segments of a path as RFC 3986 has them: divided first, then decoded.
fn segments(path: &str) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    segments.map(|segment| decoded(segment.as_bytes()))
}

/// The segments as a server finds them that decodes first, takes a backslash for a slash, and does not
/// count what follows a semicolon, a question mark or a hash.
fn loose_segments(decoded: &[u8]) -> impl Iterator<Item = &[u8]> {
    let segments = decoded.split(|byte| b"/\\".contains(byte));
    let segments =
        segments.filter_map(|segment| segment.split(|byte| b";?#".contains(byte)).next());
    segments.filter(|segment| !segment.is_empty())
}

/// Whether every `%` begins a byte, and none is the one that ends a string elsewhere.
fn is_well_encoded(path: &[u8]) -> bool {
    let mut behind = path.split(|byte| *byte == b'%').skip(1);
    behind.all(|text| byte(text).is_some_and(|byte| byte != 0))
}

fn byte(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut parts = text.split(|byte| *byte == b'%');
    let mut decoded = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        match byte(part) {
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
        let routes = paths.iter();
        let routes = routes.map(|path| ((*path).to_owned(), (*path).to_owned()));
        routes.collect()
    }

    #[test]
    fn the_longest_route_counts_and_what_is_below_it_stays_as_it_is() {
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
    fn nothing_lies_on_no_route() {
        let routes = routes(&["/a"]);
        for path in ["/", "/b", "/ab", "//", "/b/a"] {
            assert_eq!(routes.find(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn what_leads_elsewhere_when_read_in_another_way_is_refused() {
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
            assert_eq!(routes.find(path), Err(Unclear), "{path}");
        }
    }
}
