//! A kernel without the module `tls`. `just ktls` runs these tests apart from the others.

use std::fs;
use std::process::Command;

use rustls::client::Tls12Resumption;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;

use crate::peers::Certificates;
use crate::site::{MIB, Site, configuration};

#[test]
fn auto_says_so_once_and_goes_on_in_user_space() {
    let site = Site::with(MIB, "tls.kernel = 'auto'");
    let client = site.client(suite::TLS13_AES_128_GCM_SHA256, Tls12Resumption::Disabled);
    for _ in 0..2 {
        let mut connection = client.connect();
        assert!(connection.get("").body == site.content);
        connection.close();
    }
    assert_eq!(site.sent(), (0, 2 * MIB as u64));
    assert_eq!(site.server.count_lines("kernel TLS is not used"), 1);
    assert_eq!(site.server.count_lines("modprobe tls"), 1);
}

#[test]
fn on_refuses_to_start_and_names_the_remedy() {
    let certificates = Certificates::new();
    let folder = certificates.folder();
    let config = folder.join("sessile.toml");
    fs::write(
        &config,
        configuration(&certificates, folder, "tls.kernel = 'on'"),
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.env("XDG_STATE_HOME", folder);
    let output = command
        .args(["serve", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in [
        "tls.kernel is \"on\"",
        "modprobe tls",
        "/etc/modules-load.d/",
        "CONFIG_TLS",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
