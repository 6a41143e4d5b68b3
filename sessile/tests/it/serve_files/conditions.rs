//! Ranges and conditions of requests for files (RFC 9110, 13 and 14).

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use super::{Site, TEXT, VERSIONS};

#[test]
fn ranges_that_cannot_be_one_part_of_the_file_get_the_whole_file() {
    let site = Site::start();
    for (version, _) in VERSIONS {
        for range in [
            "lines=0-4",
            "bytes=0-4,6-8",
            "bytes=0-99,100-200",
            "bytes=5-4",
            "bytes=x",
            "bytes",
        ] {
            let header = format!("Range: {range}");
            let response = site.get("/text.txt", &[version, "-H", &header]);
            assert_eq!(
                (response.status, response.body.as_str()),
                (200, TEXT),
                "{range}"
            );
            assert_eq!(response.header("content-range"), None, "{range}");
        }
        let long_suffix = site.get("/text.txt", &[version, "--range", "-99"]);
        assert_eq!((long_suffix.status, long_suffix.body.as_str()), (206, TEXT));
        assert_eq!(long_suffix.header("content-range"), Some("bytes 0-19/20"));
        let empty = site.get("/empty", &[version, "--range", "0-4"]);
        assert_eq!((empty.status, empty.body.as_str()), (200, ""));
        let none = site.get("/text.txt", &[version, "--range", "-0"]);
        assert_eq!((none.status, none.body.as_str()), (416, ""));
    }
}

#[test]
fn head_ignores_ranges_and_obeys_conditions() {
    let site = Site::start();
    for (version, _) in VERSIONS {
        let head = |header: &str| site.get("/text.txt", &[version, "--head", "-H", header]);
        for range in ["Range: bytes=0-4", "Range: bytes=99-"] {
            let response = head(range);
            assert_eq!(response.status, 200, "{range}");
            assert_eq!(response.header("content-length"), Some("20"), "{range}");
            assert_eq!(response.header("content-range"), None, "{range}");
            assert_eq!(response.header("accept-ranges"), Some("bytes"), "{range}");
        }
        assert_eq!(head("If-None-Match: *").status, 304);
        assert_eq!(head("If-Match: \"other\"").status, 412);
    }
}

#[test]
fn a_resumed_download_is_of_one_version() {
    let site = Site::start();
    for (version, _) in VERSIONS {
        let resume = |validator: &str| {
            let condition = format!("If-Range: {validator}");
            let arguments = [version, "--range", "10-", "-H", &condition];
            let response = site.get("/text.txt", &arguments);
            (response.status, response.body)
        };
        let first = site.get("/text.txt", &[version]);
        let etag = first.header("etag").expect("a validator");
        let date = first.header("last-modified").expect("a date");
        assert_eq!(resume(etag), (206, TEXT[10..].to_owned()));
        let whole = (200, TEXT.to_owned());
        // A file can change twice within the second of a date.
        for validator in [date, &format!("W/{etag}"), "\"other\"", "not a date"] {
            assert_eq!(resume(validator), whole, "{validator}");
        }

        // Write another version of the file with the same length.
        let path = site.path("www/text.txt");
        let changed = TEXT.to_uppercase();
        fs::write(&path, &changed).unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        for validator in [etag, date] {
            assert_eq!(resume(validator), (200, changed.clone()), "{validator}");
        }
        fs::write(&path, TEXT).unwrap();
    }
}

#[test]
fn conditions_have_their_order() {
    let site = Site::start();
    let file = site.get("/text.txt", &[]);
    let etag = file.header("etag").expect("a validator");
    let date = file.header("last-modified").expect("a date");
    let old = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (version, _) in VERSIONS {
        for (first, second, status) in [
            (
                format!("If-Match: {etag}"),
                format!("If-Unmodified-Since: {old}"),
                200,
            ),
            (
                "If-Match: \"other\"".to_owned(),
                format!("If-None-Match: {etag}"),
                412,
            ),
            (
                format!("If-Unmodified-Since: {old}"),
                format!("If-None-Match: {etag}"),
                412,
            ),
            (
                "If-None-Match: \"other\"".to_owned(),
                format!("If-Modified-Since: {date}"),
                200,
            ),
            (
                format!("If-None-Match: W/{etag}"),
                "Range: bytes=0-4".to_owned(),
                304,
            ),
            (
                format!("If-Match: {etag}"),
                "Range: bytes=0-4".to_owned(),
                206,
            ),
            (
                "If-Match: \"other\"".to_owned(),
                "Range: bytes=99-".to_owned(),
                412,
            ),
        ] {
            let arguments = [version, "-H", &first, "-H", &second];
            let response = site.get("/text.txt", &arguments);
            assert_eq!(response.status, status, "{first}, {second}");
        }
    }
}
