use super::*;
use crate::config::{Connection, KernelTls};
use proptest::prelude::*;
use std::time::Duration;

const SAMPLE: &str = r#"Windows Registry Editor Version 5.00

; what IIS was given
[HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\SecurityProviders\SCHANNEL]
"MaximumCacheSize"=dword:00004e20 ; twice the default
"ServerCacheTime"=dword:00dbba00
"clientcachetime"=hex(4):80,ee,\
  36,00
"EventLogging"=dword:00000001
@="a default
on two lines"

[hklm\system\ControlSet001\services\http\parameters]
"EnableSslCloseNotify" = dword:1
"EnableKernelSSL"=dword:00000000
"MaxConnections"=dword:00010000
"Say \"so\" \\ then"="10000"
"#;

fn applied(text: &str) -> (Config, Report) {
    let mut config = Config::default();
    let file = parse(text.as_bytes()).expect("it is right");
    let report = apply(&file, &mut config);
    (config, report)
}

/// An export with these lines below SCHANNEL.
fn schannel(lines: &str) -> String {
    format!("REGEDIT4\n[{}]\n{lines}\n", RegKey::Schannel.path())
}

fn error(bytes: &[u8]) -> String {
    parse(bytes).expect_err("it is wrong").to_string()
}

#[test]
fn an_export_of_regedit_is_imported() {
    let (config, report) = applied(SAMPLE);
    assert_eq!(config.session.max_entries, 20_000);
    assert_eq!(config.session.lifetime, Duration::from_secs(4 * 3600));
    assert_eq!(config.session.client_lifetime, Duration::from_secs(3600));
    assert!(config.session.require_close_notify);
    assert_eq!(config.tls.kernel, KernelTls::Off);
    assert!(config.connection.purge_on_reclaim);
    assert_eq!(config.connection.max, 65_536);
    let lines: Vec<_> = report.taken.iter().map(|taken| taken.line).collect();
    assert_eq!(lines, [5, 6, 7, 14, 15, 16]);
    let ignored: Vec<_> = report.ignored.iter().map(|i| (i.line, i.why)).collect();
    assert_eq!(
        ignored,
        [(9, Why::NotOurs), (10, Why::NotOurs), (17, Why::NotOurs)]
    );
    assert!(report.ignored[2].path.ends_with(r#"\Say "so" \ then"#));
}

#[test]
fn all_encodings_and_line_ends_read_the_same() {
    let expected = parse(SAMPLE.as_bytes()).expect("it is right");
    let crlf = SAMPLE.replace('\n', "\r\n");
    let same = |mut file: RegFile| {
        for entry in &mut file.entries {
            if let Edit::Set {
                data: Data::Text(text),
                ..
            } = &mut entry.edit
            {
                *text = text.replace('\r', "");
            }
        }
        file == expected
    };
    assert!(same(parse(crlf.as_bytes()).expect("CRLF")));
    assert!(same(parse(&to_utf16(&crlf)).expect("UTF-16LE")));
    assert!(same(
        parse(format!("\u{feff}{SAMPLE}").as_bytes()).expect("a mark")
    ));
    let old = SAMPLE.replace("Windows Registry Editor Version 5.00", "REGEDIT4");
    assert_eq!(parse(old.as_bytes()).as_ref(), Ok(&expected));
    // A version 4 file is in an unknown code page, so letters outside ASCII are accepted.
    let latin = [b"REGEDIT4\n; caf\xe9\n".as_slice(), schannel("").as_bytes()].concat();
    assert_eq!(
        error(&latin),
        "3:1: expected [a key], \"a value\"= or a comment after ;"
    );
    parse(b"REGEDIT4\n; caf\xe9\n").expect("Latin-1");
}

#[test]
fn a_deletion_restores_the_default() {
    let (mut config, _) = applied(SAMPLE);
    let file = parse(schannel("\"MaximumCacheSize\"=-").as_bytes()).expect("it is right");
    assert_eq!(apply(&file, &mut config).taken[0].number, None);
    assert_eq!(config.session.max_entries, 10_000);
    assert!(config.connection.purge_on_reclaim);

    let file = br"REGEDIT4
[-HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Services\HTTP]
[-HKEY_LOCAL_MACHINE\SOFTWARE]
[-\]";
    let report = apply(&parse(file).expect("it is right"), &mut config);
    assert_eq!((report.taken.len(), report.ignored.len()), (3, 2));
    assert_eq!(config.connection, Connection::default());
    assert_eq!(config.tls.kernel, KernelTls::Auto);
    assert_eq!(config.session.lifetime, Duration::from_secs(4 * 3600));
}

#[test]
fn other_types_and_other_control_sets_are_ignored_with_the_reason() {
    let text = schannel(
        "\"MaximumCacheSize\"=\"5\"\n\"ServerCacheTime\"=hex(b):01,00,00,00,00,00,00,00\n\
         \"ClientCacheTime\"=hex:01",
    ) + "[HKLM\\SYSTEM\\ControlSet002\\Services\\HTTP\\Parameters]\n\"MaxConnections\"=dword:5\n";
    let (config, report) = applied(&text);
    let why: Vec<_> = report.ignored.iter().map(|ignored| ignored.why).collect();
    assert_eq!(
        why,
        [Why::Text, Why::Qword, Why::Type(3), Why::OtherControlSet]
    );
    assert_eq!(config, Config::default());
}

#[test]
fn a_lifetime_that_tickets_cannot_have_is_ignored() {
    let eight_days = schannel("\"ServerCacheTime\"=dword:2932e000");
    let (config, report) = applied(&eight_days);
    assert_eq!(report.ignored[0].why, Why::TooLongForTickets);
    assert_eq!(config, Config::default());

    let mut config = Config::default();
    config.session.tickets = false;
    apply(
        &parse(eight_days.as_bytes()).expect("it is right"),
        &mut config,
    );
    assert_eq!(config.session.lifetime, Duration::from_secs(8 * 24 * 3600));
}

#[test]
fn a_written_export_reads_back() {
    let (config, _) = applied(SAMPLE);
    let written = export(&config);
    assert!(written.left_out.is_empty());
    let mut read = Config::default();
    let report = apply(&parse(&to_utf16(&written.text)).expect("ours"), &mut read);
    assert_eq!((report.taken.len(), report.ignored.len()), (6, 0));
    assert_eq!(read, config);
}

#[test]
fn settings_without_a_registry_form_are_listed() {
    let mut config = Config::default();
    config.tls.kernel = KernelTls::Off;
    config.session.client_lifetime = Duration::from_micros(1);
    let written = export(&config);
    assert_eq!(
        written.left_out,
        [
            "session.client-lifetime",
            "tls.kernel",
            "connection.purge-on-reclaim",
            "connection.max"
        ]
    );
    assert!(!written.text.contains("EnableKernelSSL"));
}

#[test]
fn errors_are_located() {
    let cases = [
        ("", "1:1: the first line must be"),
        ("Windows Registry Editor Version 6\n", "1:1: the first line"),
        ("REGEDIT4\n[HKLM\\X\n", "2:2: a key must be written"),
        ("REGEDIT4\n[]\n", "2:2: a key must be written"),
        ("REGEDIT4\n\"A\"=dword:1\n", "2:1: a value before any key"),
        (
            "REGEDIT4\n[-K]\n\"A\"=dword:1\n",
            "3:1: a value before any key",
        ),
        ("REGEDIT4\n[K]\n  A=dword:1\n", "3:3: expected [a key]"),
        ("REGEDIT4\n[K]\n\"A\" dword:1\n", "3:5: expected ="),
        ("REGEDIT4\n[K]\n\"A\"=10000\n", "3:5: expected \"text\""),
        ("REGEDIT4\n[K]\n\"A\"=hex(zz):1\n", "3:5: expected \"text\""),
        ("REGEDIT4\n[K]\n\"A\"=dword:\n", "3:11: dword: takes"),
        ("REGEDIT4\n[K]\n\"A\"=dword:0x10\n", "3:11: dword: takes"),
        (
            "REGEDIT4\n[K]\n\"A\"=dword:123456789\n",
            "3:11: dword: takes",
        ),
        ("REGEDIT4\n[K]\n\"A\"=hex:1,\\\n  123\n", "4:3: hex: takes"),
        ("REGEDIT4\n[K]\n\"A\"=dword:1 x\n", "3:13: unexpected text"),
        (
            "REGEDIT4\n[K]\n\"A\"=\"b\n",
            "3:5: a string that begins here",
        ),
    ];
    for (text, expected) in cases {
        assert!(
            error(text.as_bytes()).starts_with(expected),
            "{text}: {}",
            error(text.as_bytes())
        );
    }
    let version_5 = b"Windows Registry Editor Version 5.00\n;\xff";
    assert!(error(version_5).starts_with("2:2: neither UTF-16LE"));
    let without_mark = &to_utf16("REGEDIT4\n")[2..];
    assert!(error(without_mark).starts_with("1:1: UTF-16 without a byte order mark"));
    assert!(error(&[0, b'R', 0, b'E']).starts_with("1:1: UTF-16 without a byte order mark"));
    assert!(error(&[0xfe, 0xff, 0]).starts_with("1:1: UTF-16 in big-endian"));
    assert!(error(&[&to_utf16("REGEDIT4\n"), &[0u8][..]].concat()).starts_with("2:1: neither"));
    assert!(error(&[&to_utf16("AB"), &[0, 0xd8][..]].concat()).starts_with("1:3: neither"));
    assert!(error(&vec![b' '; MAX_BYTES + 1]).starts_with("1:1: more than 16 MiB"));
}

#[test]
fn a_key_can_contain_brackets_and_precede_a_comment() {
    let file = parse(b"REGEDIT4\n[HKLM\\a]b] ; c ] d\n\"x\"=-").expect("it is right");
    assert_eq!(file.entries[0].key, r"HKLM\a]b");
}

#[test]
fn every_prefix_reads_or_gives_a_location_inside_it() {
    let utf16 = to_utf16(SAMPLE);
    for bytes in [SAMPLE.as_bytes(), &utf16] {
        for end in 0..bytes.len() {
            if let Err(error) = parse(&bytes[..end]) {
                assert!(error.line <= SAMPLE.lines().count());
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = parse(&[b"REGEDIT4\n".as_slice(), &bytes].concat());
        let _ = parse(&[[0xff, 0xfe].as_slice(), &bytes].concat());
    }

    #[test]
    fn no_text_makes_it_panic(text in "(\\[-?\\PC{0,5}\\]\\PC{0,2}\r?\n|(@|\"[a\\\\\"]{0,3}\") ?=(dword:[0-9a-f]{0,9}|hex(\\(4\\))?:([0-9a-f]{0,3},?\\\\?\n?){0,4}|\"\\PC{0,3}\"|-)?\r?\n){0,6}") {
        if let Ok(file) = parse(format!("REGEDIT4\n{text}").as_bytes()) {
            apply(&file, &mut Config::default());
        }
    }

    #[test]
    fn any_number_keeps_the_configuration_valid(number: u32, index in 0..values().len(), tickets: bool) {
        let mut config = Config::default();
        config.session.tickets = tickets;
        let value = values()[index];
        let text = format!("REGEDIT4\n[{}]\n\"{}\"=dword:{number:x}\n", value.key.path(), value.name);
        apply(&parse(text.as_bytes()).expect("it is right"), &mut config);
        prop_assert!(!tickets || config.session.lifetime <= MAX_TICKET_LIFETIME);
    }
}
