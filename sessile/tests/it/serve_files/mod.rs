//! Static files through `sessile serve`, requested with curl.

mod cached;
mod changed;
mod conditions;
mod special;
mod stalled;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::peers::{Certificates, NAME, Sessile, curl, run};

const TEXT: &str = "0123456789abcdefghij";
const SECRET: &str = "not for everyone";

/// A server with a folder of files. Some files are outside of the served folder.
struct Site {
    certificates: Certificates,
    files: TempDir,
    sessile: Sessile,
}

impl Site {
    fn start() -> Self {
        let (certificates, files) = (Certificates::new(), files());
        let (root, state) = (files.path().join("www"), files.path().join("state"));
        let sessile = Sessile::serve(&certificates, &root, &state);
        Self {
            certificates,
            files,
            sessile,
        }
    }

    /// As [`Site::start`], but serves the files below the path of a route.
    fn start_below(path: &str) -> Self {
        let (certificates, files) = (Certificates::new(), files());
        let routes = format!("[[site.route]]\npath = {path:?}\nfiles = \"www\"\n");
        let (config, state) = configuration(&certificates, &files, &routes);
        let sessile = Sessile::serve_configured(&config, &state);
        Self {
            certificates,
            files,
            sessile,
        }
    }

    /// The path of a file in the temporary folder.
    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn curl(&self, path: &str, arguments: &[&str]) -> Command {
        curl(&self.sessile, &self.certificates, path, arguments)
    }

    /// The response to a path.
    fn get(&self, path: &str, arguments: &[&str]) -> Response {
        let mut command = self.curl(path, arguments);
        command.arg("--include");
        Response::parse(&run("curl", &mut command, "").succeeded().stdout)
    }
}

/// Writes a configuration file for one site with these routes. Returns the paths of this file and
/// of a state folder.
fn configuration(certificates: &Certificates, files: &TempDir, routes: &str) -> (PathBuf, PathBuf) {
    let config = files.path().join("sessile.toml");
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n{routes}",
        certificates.chain, certificates.key,
    );
    fs::write(&config, text).unwrap();
    (config, files.path().join("state"))
}

fn files() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("secret.txt", SECRET);
    write("www/index.html", "<h1>home</h1>");
    write("www/sub/index.html", "<h1>below</h1>");
    write("www/text.txt", TEXT);
    write("www/empty", "");
    write("www/a file & more.css", "p{}");
    for name in ["s.js", "i.png", "d.json", "v.svg", "m.wasm"] {
        write(&format!("www/{name}"), "x");
    }
    folder
}

struct Response {
    http: String,
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
        let mut words = head.split(' ');
        Self {
            http: words.next().unwrap().to_owned(),
            status: words.next().unwrap().parse().expect("a status"),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let field = fields.find(|(its, _)| its.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value)
    }
}

const VERSIONS: [(&str, &str); 2] = [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")];

#[test]
fn files_have_content_type_length_and_validators() {
    let site = Site::start();
    for (version, http) in VERSIONS {
        let get = |path: &str| site.get(path, &[version]);
        for (path, content_type) in [
            ("/", "text/html"),
            ("/index.html", "text/html"),
            ("/text.txt", "text/plain"),
            ("/text.txt?version=2", "text/plain"),
            ("/a%20file%20&%20more.css", "text/css"),
            ("/s.js", "text/javascript"),
            ("/i.png", "image/png"),
            ("/d.json", "application/json"),
            ("/v.svg", "image/svg+xml"),
            ("/m.wasm", "application/wasm"),
            ("/empty", "application/octet-stream"),
        ] {
            let response = get(path);
            assert_eq!(
                (response.status, response.http.as_str()),
                (200, http),
                "{path}"
            );
            assert_eq!(
                response.header("content-type"),
                Some(content_type),
                "{path}"
            );
            let length = response.body.len().to_string();
            assert_eq!(
                response.header("content-length"),
                Some(length.as_str()),
                "{path}"
            );
        }
        assert_eq!(get("/sub/").body, "<h1>below</h1>");
        let full = get("/text.txt");
        assert_eq!(full.body, TEXT);
        let etag = full.header("etag").expect("a validator");
        let since = full.header("last-modified").expect("a date");
        for (condition, status) in [
            (format!("if-none-match: {etag}"), 304),
            ("if-none-match: \"other\"".to_owned(), 200),
            (format!("if-match: {etag}"), 200),
            ("if-match: \"other\"".to_owned(), 412),
            (format!("if-modified-since: {since}"), 304),
        ] {
            let response = site.get("/text.txt", &[version, "-H", &condition]);
            assert_eq!(response.status, status, "{condition}");
            assert_eq!(response.body.is_empty(), status != 200, "{condition}");
        }
    }
    let requests = site.sessile.metrics().sum("sessile_requests_total", &[]);
    assert_eq!(requests, 2 * (11 + 1 + 1 + 5));
}

#[test]
fn serves_ranges_and_refuses_ranges_beyond_the_end() {
    let site = Site::start();
    for (version, _) in VERSIONS {
        for (range, body, of) in [
            ("0-4", "01234", "bytes 0-4/20"),
            ("15-", "fghij", "bytes 15-19/20"),
            ("-3", "hij", "bytes 17-19/20"),
            ("18-99", "ij", "bytes 18-19/20"),
        ] {
            let response = site.get("/text.txt", &[version, "--range", range]);
            assert_eq!(
                (response.status, response.body.as_str()),
                (206, body),
                "{range}"
            );
            assert_eq!(response.header("content-range"), Some(of), "{range}");
        }
        let beyond = site.get("/text.txt", &[version, "--range", "20-"]);
        assert_eq!((beyond.status, beyond.body.as_str()), (416, ""));
        assert_eq!(beyond.header("content-range"), Some("bytes */20"));
    }
    // The access log contains the number of sent bytes.
    for sent in ["206 5", "206 3", "206 2", "416 0"] {
        let line = format!("\"GET /text.txt HTTP/1.1\" {sent} \"-\" \"curl/");
        site.sessile.await_line(&line);
    }
}

#[test]
fn refuses_methods_that_write() {
    let site = Site::start();
    for (version, _) in VERSIONS {
        let head = site.get("/text.txt", &[version, "--head"]);
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert_eq!(head.header("content-length"), Some("20"));
        let missing = site.get("/nothing", &[version, "--head"]);
        assert_eq!((missing.status, missing.body.as_str()), (404, ""));
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let response = site.get("/text.txt", &[version, "--request", method]);
            assert_eq!(response.status, 405, "{method}");
            assert_eq!(response.header("allow"), Some("GET, HEAD"), "{method}");
        }
    }
    // The server refuses an upload before all of its bytes are sent. The response must arrive
    // nevertheless.
    let file = site.files.path().join("upload");
    fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
    let upload = format!("@{}", file.display());
    let arguments = ["--http1.1", "--header", "expect:", "--data-binary", &upload];
    assert_eq!(site.get("/text.txt", &arguments).status, 405);
    // Use HTTP/1.1: over HTTP/2, curl 7.88 fails if the response arrives before curl has sent the
    // body.
    let posted = site.get("/text.txt", &["--http1.1", "--data", "a body"]);
    assert_eq!(posted.status, 405);
    assert_eq!(
        fs::read_to_string(site.files.path().join("www/text.txt")).unwrap(),
        TEXT
    );
}

#[test]
fn no_path_leads_out_of_the_root() {
    let site = Site::start();
    let absolute = |name: &Path| format!("/{}", name.display());
    let secret = absolute(&site.files.path().join("secret.txt"));
    let encoded = secret.replace('/', "%2f");
    for (version, _) in VERSIONS {
        for path in [
            "/../secret.txt",
            "/..//secret.txt",
            "/sub/../../secret.txt",
            "/./../secret.txt",
            "/%2e%2e/secret.txt",
            "/.%2e/secret.txt",
            "/%2E%2E%2Fsecret.txt",
            "/..%2fsecret.txt",
            "/sub%2f..%2f..%2fsecret.txt",
            "/%252e%252e/secret.txt",
            "/..%5csecret.txt",
            "/..\\secret.txt",
            "/%2e%2e%00/secret.txt",
            "/text.txt%00.html",
            "/%c0%ae%c0%ae/secret.txt",
            &secret,
            &format!("/{encoded}"),
            "//etc/passwd",
            "/nothing",
            "/text.txt/",
            "/text.txt/nothing",
        ] {
            let response = site.get(path, &[version]);
            let refused = matches!(response.status, 400 | 404);
            assert!(refused, "{path}: {}\n{}", response.head, response.body);
            assert!(!response.body.contains(SECRET), "{path}");
        }
    }
}

#[test]
fn redirects_a_folder_without_a_trailing_slash() {
    let home = Site::start();
    let below = Site::start_below("/files");
    for (version, _) in VERSIONS {
        for (site, path, location) in [
            (&home, "/sub", "/sub/"),
            (&home, "/sub?a=b", "/sub/?a=b"),
            // A location that begins with two slashes would make the folder's name a host.
            (&home, "//sub", "/sub/"),
            (&below, "/files/sub", "/files/sub/"),
            (&below, "/files/sub?a=b", "/files/sub/?a=b"),
            (&below, "/files//sub", "/files/sub/"),
            (&below, "/files", "/files/"),
            (&below, "/files?a=b", "/files/?a=b"),
        ] {
            let response = site.get(path, &[version]);
            assert_eq!(response.header("location"), Some(location), "{path}");
            assert!(matches!(response.status, 307 | 308), "{path}");
        }
        assert_eq!(below.get("/files/", &[version]).body, "<h1>home</h1>");
        assert_eq!(below.get("/files/text.txt", &[version]).body, TEXT);
        for path in ["/", "/filestext.txt", "/text.txt"] {
            assert_eq!(below.get(path, &[version]).status, 404, "{path}");
        }
        assert_eq!(below.get("/files/../secret.txt", &[version]).status, 400);
        assert_eq!(
            below.get("//files", &[version]).header("location"),
            Some("/files/")
        );
    }
}

#[test]
fn a_request_for_another_site_than_in_the_handshake_is_misdirected() {
    let (certificates, files) = (Certificates::new(), files());
    let config = files.path().join("sessile.toml");
    let (chain, key) = (&certificates.chain, &certificates.key);
    let site = |names: &str, text: &str| {
        format!(
            "[[site]]\nnames = {names}\ncertificates = [{{ chain = {chain:?}, key = {key:?} }}]\n\
             [[site.route]]\npath = \"/\"\nrespond = {text:?}\n"
        )
    };
    let sites = site(&format!("[{NAME:?}]"), "ours") + &site("[\"other.test\"]", "theirs");
    let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{sites}");
    fs::write(&config, text).unwrap();
    let sessile = Sessile::serve_configured(&config, &files.path().join("state"));
    let site = Site {
        certificates,
        files,
        sessile,
    };
    for version in ["--http1.1", "--http2"] {
        assert_eq!(site.get("/", &[version]).body, "ours");
        let other = site.get("/", &[version, "-H", "Host: other.test:443"]);
        assert_eq!(other.status, 421);
    }
}
