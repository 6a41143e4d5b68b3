//! Clients with small records resume TLS 1.3 sessions of every kind. The server splits large
//! tickets over several records.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::libraries::early_data;
use super::wire::Wire;
use super::{Devices, STORED, header, request, verdict};
use crate::peers::run;
use crate::store::setup::Redis;

const SMALL: [&str; 3] = ["-tls1_3", "-maxfraglen", "512"];

const RESUMED: [&str; 4] = [
    "full/nothing-offered",
    "resumed/psk",
    "resumed/psk",
    "resumed/psk",
];

/// Asserts the verdicts of a returning client, and that all records of the server are small.
fn assert_resumes(devices: &Devices, more: &[&str]) {
    let wire = Wire::start(devices.server.address());
    let session = devices.state.path().join("session.pem");
    for expected in RESUMED {
        let ran = devices.openssl(wire.address(), &[&SMALL, more].concat(), &session);
        assert_eq!(verdict(&ran), expected);
        wire.records().assert_limit(512, true, expected);
    }
}

#[test]
fn sealed_sessions_resume() {
    assert_resumes(&Devices::new(""), &[]);
}

#[test]
fn stored_sessions_resume() {
    assert_resumes(&Devices::new(STORED), &[]);
}

#[test]
fn sessions_with_a_client_certificate_resume() {
    let certificates = tempfile::tempdir().unwrap();
    let certificate = certificates.path().join("client.pem");
    let key = certificates.path().join("client.key");
    // The long subject makes each ticket longer than one record.
    let parts = (0..24).map(|at| format!("/OU=department {at:02} of the customer"));
    let subject = format!("/CN=alice{}", parts.collect::<String>());
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
    openssl.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", &subject]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args(["-addext", "extendedKeyUsage=clientAuth"]);
    openssl
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key);
    run("openssl", &mut openssl, "").succeeded();
    let length = fs::read(&certificate).unwrap().len();
    assert!(length > 2048, "a large certificate: {length}");

    let client_auth = format!("client-auth = {{ ca = {certificate:?} }}\n");
    let devices = Devices::with_client_auth("", &client_auth);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    assert_resumes(
        &devices,
        &["-cert", &path(&certificate), "-key", &path(&key)],
    );
}

#[test]
fn early_data_sessions_resume_and_their_responses_have_small_records() {
    let redis = Redis::start();
    let devices = Devices::new(&early_data(&redis));
    assert_resumes(&devices, &[]);

    let wire = Wire::start(devices.server.address());
    let session = devices.state.path().join("session.pem");
    let early = devices.state.path().join("early");
    fs::write(&early, request()).unwrap();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-servername", crate::peers::NAME]);
    command
        .args(SMALL)
        .arg("-connect")
        .arg(wire.address().to_string());
    command.arg("-CAfile").arg(&devices.certificates.ca);
    command
        .arg("-sess_in")
        .arg(&session)
        .arg("-sess_out")
        .arg(&session);
    command.arg("-early_data").arg(&early);
    let ran = run("openssl", &mut command, "").succeeded();
    assert_eq!(verdict(&ran), "resumed/psk");
    assert_eq!(header(&ran, "sessile-early-data: "), "accepted");
    wire.records().assert_limit(512, true, "early data");

    let ran = devices.openssl(wire.address(), &SMALL, &session);
    assert_eq!(verdict(&ran), "resumed/psk", "with a ticket from there");
}
