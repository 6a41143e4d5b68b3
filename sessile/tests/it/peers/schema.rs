//! The JSON Schema of the probe's report.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::mail::PYTHON;

/// Prints each fault in the document on the standard input.
const VALIDATE: &str = "
import json, sys, jsonschema
schema = json.load(open(sys.argv[1]))
validator = jsonschema.Draft202012Validator(schema['$defs']['report'], resolver=jsonschema.RefResolver('', schema))
jsonschema.Draft202012Validator.check_schema(schema)
for fault in validator.iter_errors(json.load(sys.stdin)):
    print(list(fault.absolute_path), fault.message[:300])
";

/// Panics if the report does not follow the published schema.
#[track_caller]
pub(crate) fn assert_follows_schema(report: &[u8]) {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/probe.schema.json");
    let mut python = Command::new(PYTHON)
        .args(["-W", "ignore", "-c", VALIDATE])
        .arg(schema)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let mut stdin = python.stdin.take().expect("a pipe");
    stdin.write_all(report).expect("python3 reads the report");
    drop(stdin);
    let output = python.wait_with_output().expect("python3 ends");
    let [faults, said] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(
        output.status.success() && faults.is_empty(),
        "{faults}{said}"
    );
}
